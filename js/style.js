/** The editors' look, in the colours of the page's theme. Every rule names a class of ours: a page has one set of rules for all. */

const STYLE = `<style>
.framepainter-widget, .framepainter-dialog, .framepainter-ask {
  --fp-accent: #3b82f6; --fp-on-accent: #fff; --fp-danger: #ef4444; --fp-warn: #d99a1c;
  --fp-panel: var(--comfy-menu-bg, #202020); --fp-text: var(--fg-color, #eee);
  --fp-quiet: color-mix(in srgb, var(--fp-text) 64%, var(--fp-panel));
  --fp-line: color-mix(in srgb, var(--fp-text) 16%, var(--fp-panel));
  --fp-field: color-mix(in srgb, var(--fp-text) 7%, var(--fp-panel));
  --fp-hover: color-mix(in srgb, var(--fp-text) 13%, var(--fp-panel));
  --fp-ground: color-mix(in srgb, var(--fp-panel) 82%, #000);
  font: 13px/1.4 Inter, system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--fp-text);
}
.framepainter-widget *, .framepainter-dialog *, .framepainter-ask * { box-sizing: border-box; }
.framepainter-widget { display: flex; flex-direction: column; gap: 6px; width: 100%; height: 100%; min-height: 230px; overflow: hidden; }
.framepainter-widget .framepainter-thumb { position: relative; flex: 1 1 0; min-height: 150px; border-radius: 6px; overflow: hidden;
  background: var(--fp-ground); border: 1px solid var(--fp-line); cursor: pointer; }
.framepainter-widget .framepainter-thumb canvas { position: absolute; inset: 0; width: 100%; height: 100%; display: block; }
.framepainter-widget .framepainter-empty { position: absolute; inset: 0; display: grid; place-content: center; text-align: center; padding: 12px;
  color: var(--fp-quiet); font-size: 12px; pointer-events: none; }
.framepainter-widget .framepainter-empty { gap: 10px; justify-items: center; }
.framepainter-widget .framepainter-empty .framepainter-button { pointer-events: auto; background: var(--fp-panel); color: var(--fp-text); }
.framepainter-widget .framepainter-empty .framepainter-button[hidden] { display: none; }
.framepainter-ask { max-width: min(430px, calc(100vw - 32px)); padding: 18px 20px; border: 1px solid var(--fp-line); border-radius: 10px; background: var(--fp-panel);
  box-shadow: 0 14px 50px #0009; }
.framepainter-ask::backdrop { background: #0006; }
.framepainter-ask p { margin: 0 0 16px; overflow-wrap: anywhere; }
.framepainter-ask .framepainter-row { display: flex; justify-content: flex-end; gap: 8px; }
.framepainter-file .framepainter-thumb { cursor: default; }
.framepainter-file .framepainter-thumb > :is(img, video) { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; pointer-events: none; }
.framepainter-widget .framepainter-status { display: flex; gap: 8px; align-items: center; justify-content: space-between; flex: none; min-height: 18px;
  color: var(--fp-quiet); font-size: 11.5px; line-height: 1.35; }
.framepainter-widget .framepainter-status[data-level=warn] { color: var(--fp-text); background: color-mix(in srgb, var(--fp-warn) 24%, var(--fp-panel));
  border-radius: 5px; padding: 4px 7px; }
.framepainter-widget .framepainter-row { display: flex; gap: 6px; flex: none; min-width: 0; overflow: hidden; }
.framepainter-widget .framepainter-row .framepainter-button { padding: 0 6px; overflow: hidden; }
.framepainter-widget .framepainter-row .framepainter-button { flex: 1 1 auto; min-width: 0; }
.framepainter-widget .framepainter-button span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.framepainter-button { display: inline-flex; align-items: center; justify-content: center; gap: 6px; height: 30px; padding: 0 10px; margin: 0;
  border: 1px solid var(--fp-line); border-radius: 6px; background: var(--fp-field); color: inherit; font: inherit; cursor: pointer;
  touch-action: manipulation; }
.framepainter-button svg, .framepainter-piece svg { width: 17px; height: 17px; flex: none; fill: none; stroke: currentColor; stroke-width: 1.7; stroke-linecap: round;
  stroke-linejoin: round; }
.framepainter-button.framepainter-icon { width: 32px; padding: 0; }
.framepainter-button:hover:not(:disabled) { background: var(--fp-hover); }
.framepainter-button:disabled { opacity: .38; cursor: default; }
.framepainter-button[aria-pressed=true] { background: color-mix(in srgb, var(--fp-accent) 26%, var(--fp-panel)); border-color: var(--fp-accent); }
.framepainter-button.framepainter-main { background: var(--fp-accent); border-color: transparent; color: var(--fp-on-accent); font-weight: 600; }
.framepainter-button.framepainter-main:hover { background: color-mix(in srgb, var(--fp-accent) 86%, #fff); }
.framepainter-button:focus-visible, .framepainter-dialog input:focus-visible, .framepainter-piece:focus-visible { outline: 2px solid var(--fp-accent); outline-offset: 1px; }
.framepainter-dialog { position: fixed; inset: 0; width: 100vw; height: 100vh; height: 100dvh; max-width: none; max-height: none; margin: 0; padding: 0;
  border: 0; background: var(--fp-panel); display: none; flex-direction: column; overscroll-behavior: contain; user-select: none;
  -webkit-user-select: none; color-scheme: light; }
.framepainter-dialog[open] { display: flex; }
body.dark-theme .framepainter-dialog, body.dark-theme .framepainter-widget { color-scheme: dark; }
.framepainter-head, .framepainter-bar, .framepainter-foot { display: flex; align-items: center; gap: 10px; padding: 8px 12px; border-bottom: 1px solid var(--fp-line); flex: none; }
.framepainter-head h2 { margin: 0; font-size: 15px; font-weight: 650; }
.framepainter-head .framepainter-about { color: var(--fp-quiet); white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.framepainter-space { flex: 1; }
.framepainter-bar { flex-wrap: wrap; row-gap: 6px; gap: 12px; }
.framepainter-group { display: flex; gap: 4px; align-items: center; }
.framepainter-group + .framepainter-group { padding-left: 12px; border-left: 1px solid var(--fp-line); }
.framepainter-slider { display: inline-flex; align-items: center; gap: 7px; color: var(--fp-quiet); white-space: nowrap; }
.framepainter-slider input[type=range] { width: 110px; accent-color: var(--fp-accent); margin: 0; }
.framepainter-dialog input[type=number] { width: 58px; height: 28px; padding: 0 6px; border: 1px solid var(--fp-line); border-radius: 5px;
  background: var(--fp-field); color: var(--fp-text); font: inherit; font-variant-numeric: tabular-nums; user-select: text; }
.framepainter-unit { margin-left: -3px; }
.framepainter-banner { display: flex; flex-wrap: wrap; align-items: center; gap: 8px 10px; padding: 8px 12px; flex: none;
  background: color-mix(in srgb, var(--fp-warn) 20%, var(--fp-panel)); border-bottom: 1px solid color-mix(in srgb, var(--fp-warn) 50%, var(--fp-panel)); }
.framepainter-banner[hidden], .framepainter-help[hidden], .framepainter-toast[hidden] { display: none; }
.framepainter-banner p { margin: 0; flex: 1 1 320px; user-select: text; }
.framepainter-body { flex: 1; display: flex; min-height: 0; position: relative; }
.framepainter-stage { flex: 1; position: relative; overflow: hidden; touch-action: none; background: var(--fp-ground); min-width: 0; }
.framepainter-stage canvas { position: absolute; inset: 0; width: 100%; height: 100%; display: block; }
.framepainter-keys { position: absolute; left: 0; top: 0; width: 1px; height: 1px; padding: 0; border: 0; opacity: 0; pointer-events: none; }
.framepainter-foot { border: 0; border-top: 1px solid var(--fp-line); padding: 5px 12px; color: var(--fp-quiet); font-size: 12px; }
.framepainter-foot .framepainter-tip { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.framepainter-foot output { font-variant-numeric: tabular-nums; white-space: nowrap; min-width: 92px; text-align: right; }
.framepainter-strip { display: flex; align-items: center; gap: 12px; flex: none; padding: 6px 12px; border-top: 1px solid var(--fp-line); min-width: 0; }
.framepainter-strip[hidden] { display: none; }
.framepainter-strip label { display: grid; grid-template-columns: auto auto; gap: 3px 7px; align-items: center; flex: none; max-width: 190px; color: var(--fp-quiet); font-size: 12px; }
.framepainter-strip .framepainter-unit { grid-column: 1 / 3; margin: 0; }
.framepainter-cells { display: flex; gap: 3px; overflow-x: auto; min-width: 0; scrollbar-width: thin; padding: 2px; }
.framepainter-button.framepainter-cell { height: auto; padding: 2px; flex: none; flex-direction: column; gap: 1px; border-width: 2px; font-size: 10.5px; line-height: 1.2; }
.framepainter-cell i { display: block; }
.framepainter-toast { position: absolute; left: 50%; bottom: 18px; transform: translateX(-50%); max-width: min(560px, 90%); padding: 8px 14px; border-radius: 8px;
  background: var(--fp-text); color: var(--fp-panel); box-shadow: 0 6px 24px #0006; pointer-events: none; }
.framepainter-help { position: absolute; right: 14px; top: 14px; width: min(430px, calc(100% - 28px)); max-height: calc(100% - 28px); overflow: auto; padding: 14px 16px;
  background: var(--fp-panel); border: 1px solid var(--fp-line); border-radius: 10px; box-shadow: 0 10px 40px #0007; z-index: 2; }
.framepainter-help h3 { margin: 0 0 8px; font-size: 14px; }
.framepainter-help dl { display: grid; grid-template-columns: minmax(0, 9fr) minmax(0, 11fr); gap: 7px 14px; margin: 0; }
.framepainter-help dt { display: flex; flex-wrap: wrap; gap: 3px 4px; align-items: start; align-content: start; }
.framepainter-help dd { margin: 0; color: var(--fp-quiet); }
.framepainter-help kbd { font: 600 11.5px/1.5 ui-monospace, Consolas, monospace; padding: 1px 6px; border: 1px solid var(--fp-line); border-radius: 4px; background: var(--fp-field); }
.framepainter-side { width: 252px; flex: none; border-left: 1px solid var(--fp-line); display: flex; flex-direction: column; min-height: 0; }
.framepainter-side h3 { margin: 0; padding: 10px 12px 6px; font-size: 12px; font-weight: 650; color: var(--fp-quiet); }
.framepainter-pieces { flex: 1; overflow: auto; padding: 0 8px 8px; margin: 0; list-style: none; display: flex; flex-direction: column; gap: 4px; }
.framepainter-pieces .framepainter-none { color: var(--fp-quiet); padding: 4px; }
.framepainter-piece { display: flex; align-items: center; gap: 8px; padding: 5px; border-radius: 6px; border: 1px solid transparent; cursor: pointer; }
.framepainter-piece:hover { background: var(--fp-field); }
.framepainter-piece[aria-selected=true] { border-color: var(--fp-accent); background: color-mix(in srgb, var(--fp-accent) 16%, var(--fp-panel)); }
.framepainter-piece canvas { width: 40px; height: 40px; border-radius: 4px; background: var(--fp-ground); flex: none; }
.framepainter-piece .framepainter-name { flex: 1; min-width: 0; line-height: 1.25; }
.framepainter-piece small { display: block; color: var(--fp-quiet); }
.framepainter-piece .framepainter-button { width: 26px; height: 26px; background: none; border-color: transparent; }
.framepainter-numbers { border-top: 1px solid var(--fp-line); padding: 10px 12px; display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 8px 14px; flex: none; }
.framepainter-numbers[hidden] { display: none; }
.framepainter-numbers label { display: flex; align-items: center; justify-content: space-between; gap: 6px; color: var(--fp-quiet); white-space: nowrap; }
.framepainter-dialog .framepainter-numbers input[type=number] { width: 72px; flex: none; }
.framepainter-words { --fp-kept: var(--fp-hover); --fp-swapped: color-mix(in srgb, #f59e0b 34%, var(--fp-panel)); --fp-added: color-mix(in srgb, #22c55e 32%, var(--fp-panel));
  --fp-removed: color-mix(in srgb, #ef4444 30%, var(--fp-panel)); --fp-blend: #4c9aff; --fp-away: #c77dff; }
.framepainter-widget.framepainter-words { min-height: 200px; }
.framepainter-words [hidden] { display: none !important; }
.framepainter-word-rows { flex: 1 1 0; min-height: 60px; overflow: auto; display: flex; flex-direction: column; gap: 8px; padding: 7px; border-radius: 6px;
  background: var(--fp-ground); border: 1px solid var(--fp-line); scrollbar-width: thin; }
.framepainter-word-row { display: flex; flex-direction: column; gap: 2px; }
.framepainter-word-side { display: flex; gap: 8px; font-size: 11px; line-height: 1.3; color: var(--fp-quiet); font-variant-numeric: tabular-nums; }
.framepainter-word-side b { font-weight: 600; }
.framepainter-word-side[data-level=warn] span { color: var(--fp-danger); font-weight: 650; }
.framepainter-chips { display: flex; flex-wrap: wrap; gap: 4px; font-size: 12.5px; color: var(--fp-quiet); }
.framepainter-chip { max-width: 100%; display: inline-flex; align-items: baseline; gap: 4px; margin: 0; padding: 1px 6px; border: 2px solid transparent; border-radius: 7px;
  background: var(--fp-kept); color: var(--fp-text); font: inherit; line-height: 1.35; cursor: pointer; user-select: none; -webkit-user-select: none; touch-action: none; }
.framepainter-chip-word { overflow-wrap: anywhere; text-align: left; }
.framepainter-chip-weight { font-weight: 700; font-variant-numeric: tabular-nums; }
.framepainter-chip-steps { font-size: 10.5px; color: var(--fp-quiet); white-space: nowrap; }
.framepainter-chip-weight:empty { display: none; }
.framepainter-chip[data-kind=swapped] { background: var(--fp-swapped); }
.framepainter-chip[data-kind=added] { background: var(--fp-added); }
.framepainter-chip[data-kind=removed] { background: var(--fp-removed); }
.framepainter-chip[data-kind=removed] .framepainter-chip-word { text-decoration: line-through; text-decoration-thickness: 1px; }
.framepainter-chip[data-area=blend] { border-color: var(--fp-blend); }
.framepainter-chip[data-area=away] { border-color: var(--fp-away); border-style: dashed; }
.framepainter-chip:hover:not([aria-disabled]) { filter: brightness(1.18); }
.framepainter-chip[data-list=edited]:not([aria-disabled]) { cursor: ew-resize; }
.framepainter-chip[aria-disabled] { opacity: .6; cursor: default; }
.framepainter-chip:focus-visible, .framepainter-words select:focus-visible, .framepainter-words input:focus-visible, .framepainter-words-text:focus-visible { outline: 2px solid var(--fp-text); outline-offset: 1px; }
.framepainter-words-text:focus-visible { outline-offset: -2px; }
.framepainter-legend { display: flex; flex-wrap: wrap; gap: 1px 6px; flex: none; font-size: 11px; color: var(--fp-quiet); }
.framepainter-legend span::before { content: ""; display: inline-block; width: 10px; height: 10px; margin-right: 3px; border-radius: 3px; vertical-align: -1px; background: var(--fp-line); }
.framepainter-legend [data-kind=swapped]::before { background: var(--fp-swapped); }
.framepainter-legend [data-kind=added]::before { background: var(--fp-added); }
.framepainter-legend [data-kind=removed]::before { background: var(--fp-removed); }
.framepainter-legend [data-kind=blend]::before { background: none; border: 2px solid var(--fp-blend); }
.framepainter-legend [data-kind=away]::before { background: none; border: 2px dashed var(--fp-away); }
.framepainter-words-text { flex: 1 1 0; min-height: 60px; resize: none; padding: 7px; border: 1px solid var(--fp-line); border-radius: 6px; background: var(--fp-ground); color: var(--fp-text);
  font: 12px/1.45 ui-monospace, Consolas, monospace; }
.framepainter-words .framepainter-status { max-height: 76px; overflow: auto; }
.framepainter-words .framepainter-status .framepainter-button { height: 24px; flex: none; }
.framepainter-words .framepainter-row .framepainter-button { flex: none; height: 28px; padding: 0 8px; }
.framepainter-detail { flex: 1; min-width: 0; display: flex; gap: 5px; align-items: center; font-size: 11.5px; line-height: 1.25; color: var(--fp-quiet); }
.framepainter-detail select, .framepainter-detail input { height: 28px; min-width: 0; padding: 0 5px; border: 1px solid var(--fp-line); border-radius: 6px; background: var(--fp-field);
  color: var(--fp-text); font: inherit; font-size: 12px; }
.framepainter-detail select { flex: 1; }
.framepainter-detail select option { background: var(--fp-panel); color: var(--fp-text); }
.framepainter-detail input { width: 56px; flex: none; font-variant-numeric: tabular-nums; }
@media (max-width: 760px) {
  .framepainter-slider input[type=range] { width: 72px; } .framepainter-head .framepainter-about, .framepainter-foot .framepainter-tip { display: none; } .framepainter-side { width: 168px; }
  .framepainter-numbers { grid-template-columns: minmax(0, 1fr); } .framepainter-bar { gap: 6px; } .framepainter-group + .framepainter-group { padding-left: 6px; }
}
@media (pointer: coarse) { .framepainter-button { height: 38px; } .framepainter-button.framepainter-icon { width: 40px; } }
</style>`;

/** Put the rules into an element of ours, so that they go when it goes. */
export function addStyle(root) {
  root.insertAdjacentHTML("afterbegin", STYLE);
}

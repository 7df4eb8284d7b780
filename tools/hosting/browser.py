"""Find a Chromium-like browser for the tests of the canvas; install one only where that is clearly wanted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tools.hosting.steps import Say

PROGRAMS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
    "microsoft-edge",
)
MAC_APPS = ("Google Chrome", "Chromium", "Microsoft Edge")
WINDOWS_PLACES = (r"Google\Chrome\Application\chrome.exe", r"Microsoft\Edge\Application\msedge.exe")
PLAYWRIGHT_PLACES = (
    "chromium-*/chrome-linux*/chrome",
    "chromium-*/chrome-mac*/*.app/Contents/MacOS/*",
    "chromium-*/chrome-win*/chrome.exe",
)


def find_chrome(environ: Mapping[str, str]) -> Path | None:
    """The browser to use, or None. CHROME_PATH wins, even over better ones."""
    named = environ.get("CHROME_PATH", "").strip()
    if named:
        return Path(named).expanduser().absolute()
    return next((path for path in _candidates(environ) if path.is_file()), None)


def _candidates(environ: Mapping[str, str]) -> Iterator[Path]:
    for name in PROGRAMS:
        found = shutil.which(name, path=environ.get("PATH"))
        if found:
            yield Path(found)
    if sys.platform == "darwin":
        for app in MAC_APPS:
            for root in (Path("/Applications"), Path.home() / "Applications"):
                yield root / f"{app}.app" / "Contents" / "MacOS" / app
    if os.name == "nt":
        for variable in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA"):
            if environ.get(variable):
                yield from (Path(environ[variable]) / place for place in WINDOWS_PLACES)
    for pattern in PLAYWRIGHT_PLACES:
        # The highest revision last in name order is the newest.
        yield from sorted(_playwright_root(environ).glob(pattern), reverse=True)


def _playwright_root(environ: Mapping[str, str]) -> Path:
    named = environ.get("PLAYWRIGHT_BROWSERS_PATH", "")
    if named and named != "0":
        return Path(named)
    if os.name == "nt":
        return Path(environ.get("LOCALAPPDATA", str(Path.home()))) / "ms-playwright"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ms-playwright"
    return Path.home() / ".cache" / "ms-playwright"


def ensure_chrome(environ: Mapping[str, str], say: Say) -> Path | None:
    """The browser, installed first in a root shell on a Debian-like system (a container, mostly)."""
    found = find_chrome(environ)
    if found is not None or not _may_use_apt():
        return found
    say("No Chromium found; installing it with apt-get ...")
    command = "apt-get update -q && apt-get install -y -q --no-install-recommends chromium"
    done = subprocess.run(
        ["sh", "-c", command],
        env={**environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        say("apt-get could not install it: " + (done.stdout.strip().splitlines() or ["no output"])[-1])
    return find_chrome(environ)


def _may_use_apt() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("apt-get") is not None

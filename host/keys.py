"""Every string this pack puts into the host's shared dictionaries."""

PREFIX = "framepainter"
SITE = f"{PREFIX}_site"  # transformer_options: path of the spatial transformer block being run
BLOCK = f"{PREFIX}_block"  # transformer_options: that block itself
RECORD = f"{PREFIX}_record"  # transformer_options: callable(site, q, k, heads, options), asked to look at matching attention
NORMED = f"{PREFIX}_normed"  # one block's extra_options: its normalised input, from attn1_patch to attn1_output_patch
OUTER = f"{PREFIX}_outer"  # transformer_options: the options that the block was run with, patches included
BLOCK_OUTPUT = f"{PREFIX}_block_output"  # kind of patch: callable(tokens, options), on a spatial transformer block's output
MEMORY = f"{PREFIX}_memory"  # transformer_options: object whose extend() may add keys and values to temporal self-attention
RUN = f"{PREFIX}_injection_run"  # transformer_options: what one sampling run of Match Attention keeps
GROUPS = f"{PREFIX}_injection_groups"  # transformer_options: what each group of a pass is, where the source is among them
PAST = f"{PREFIX}_past"  # attachment: clip 0, which a later clip's temporal attention sees
PAST_RUN = f"{PREFIX}_past_run"  # transformer_options: what one sampling run keeps of it
PASS = f"{PREFIX}_attention_pass"  # transformer_options: object whose attend() stands in for self-attention in one pass
READ_OUT = f"{PREFIX}_difference"  # attachment: attention differences of the last run
CONTROLLED = f"{PREFIX}_controlled"  # transformer_options: (features with control so far, features before any), in one pass
DUAL_CLOCK = f"{PREFIX}_dual_clock"  # wrapper of the sampler, see host/keeping.py
SAVINGS = f"{PREFIX}_savings"  # callback of clones, see host/models/savings.py
ALONE = f"{PREFIX}_alone"  # one block's extra_options: its self-attention is computed for each video's first frame only
PROMPT_RUN = f"{PREFIX}_prompt_run"  # transformer_options: what one sampling run of Prompt Attention keeps
PROMPT_PASS = f"{PREFIX}_prompt_pass"  # transformer_options: what one evaluation of it does
PROMPT_VIDEOS = f"{PREFIX}_prompt_videos"  # transformer_options: what each video of such an evaluation is
PROMPT_EDIT = f"{PREFIX}_prompt_edit"  # attachment: the plan of Prompt Attention, and where words looked in its last run

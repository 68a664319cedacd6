"""Lines that sound like failures and are none, and the level that a logger gave a line.

Healthy programs print these: torch's socket warnings, TensorFlow's plugin registration, NCCL's
information, loss scalers, deprecations, environment dumps.
"""

from __future__ import annotations

import re

_BENIGN = re.compile(
    r"""
    process\ group\ has\ not\ been\ destroyed
  | \bNCCL\ INFO\b
  | \[W\S*\ .{0,80}socket\.cpp
  | \[c10d\]\ the\ (?:client|server)\ socket\ (?:has\ failed\ to\ (?:connect|bind|listen)
        |cannot\ be\ initialized).{0,80}errno:\ (?:97|99)
  | hostname\ of\ the\ client\ socket\ cannot\ be\ retrieved
  | unable\ to\ register\ cu(?:fft|dnn|blas)\ factory | computation\ placer\ already\ registered
  | could\ not\ load\ dynamic\ library | cudart\ dlerror | dso_loader | tf-trt\ warning
  | could\ not\ find\ cuda\ drivers | cannot\ dlopen\ some\ gpu\ libraries
  | failed\ call\ to\ cuinit | unable\ to\ initialize\ backend
  | overflow!.{0,80}(?:skipping|attempted) | gradient\ overflow | skipping\ step
  | leaked\ (?:semaphore|shared_memory)\b | resource_tracker
  | destroy_process_group | failed\ to\ send\ message_task_exit
  | no\ (?:error|failure|exception|problem)s?\b | \b0\ (?:error|failure|exception|warning)s?\b
  | \b(?:errors?|failures?|failed)\s*[:=]\s*(?:0|none|false|\[\]|\{\})(?![\d.]*[1-9])
  | exit(?:ed\ with)?\ ?(?:code|status|_code)\s*[:=]?\s*0\b | exitcode\s*[:=]\s*0\b
  | (?:fault|failure|error|exception)[-_ ](?:toleran|handl|handler|rate|bar|feedback|correction|
        recover|inject)\w*
  | \bhandl\w*\ (?:of\ )?(?:error|exception|failure|signal)s?\b | error_file:\ <n/a>
  | mean\ ?(?:squared|absolute)\ ?(?:\w+\ )?error
  | (?:mse|mae|rmse|prediction|reconstruction|quantization|validation|training|test|top-?\d|relative
        |absolute|average|mean|standard|word|char\w*)[_ ]error\b\s*(?:rate)?\s*[:=(]
  | ignore\ (?:above|this)\ | can\ be\ (?:safely\ )?ignored | safe(?:ly)?\ (?:to\ )?ignore
  | (?:^|\s)(?:export|declare\ -x)\s+\w+=
  | ^\s*\w*(?:timeout|retry|error|nccl)\w*=\S*(?:\s+\w+=\S*)*\s*$
  | (?:auto[-_ ]?requeu\w+|requeue)\s+(?:is\ )?enabled | setting\ signal\ handlers?
  | (?:install|register)\w*\ (?:a\ )?(?:signal|sig\w+)\ (?:handler|hook)
  | (?:will|would|to)\ (?:be\ )?(?:retry|retried)\ (?:if|on|when)
  | (?:if|when|in\ case)\ (?:you|the|a|an|any)\b
        .{0,60}(?:out\ of\ memory|oom|timeout|fail\w*|error|crash\w*)(?!.{0,40}(?:killed|errno))
  | (?:to|and)\ (?:avoid|prevent|reduce)\b.{0,60}(?:oom|out\ of\ memory|deadlock|error|timeout)s?\b
        (?<!to\ avoid\ fragmentation)(?!.*tried\ to\ allocate)
  | all\ processes\ (?:finished|exited)\ success | completed\ successfully | succeeded\ after
  | (?:recovered|resum\w+)\ from\ (?:a\ |the\ )?(?:checkpoint|failure|error|preempt\w+)
  | retry\ succeeded | (?:connection|network)\ (?:re-?established|restored|recovered)
  | (?:entering|entered)\ retry\ loop | (?:\d+\ )?retries\ (?:left|remaining)
  | (?:best|min(?:imum)?|lowest|initial)[_ ]?(?:\w+[_ ])?(?:loss|metric|score|ppl)\s*[:=]\s*[-+]?inf
  | improved\ from\ [-+]?inf
  | oom_score_adj(?!.*(?:invoked|killed)) | (?<!\d\ )oom\ protection
  | ibv_fork_init | was\ (?:unable|not\ able)\ to\ find\ any\ (?:usable\ )?(?:openfabrics|fork)
  | torch\.distributed\.elastic\.multiprocessing\.redirects
  | failed\ to\ load\ image\ python\ extension
  | (?:couldn't|could\ not|unable\ to)
        \ (?:chown|set\ (?:affinity|memlock)|find\ apex|import\ (?:apex|xformers))
  | srun:\ warning: | srun:\ job\ \d+\ (?:queued|has\ been)
  """,
    re.IGNORECASE | re.VERBOSE,
)
_ERROR = re.compile(r"^\W*(?:rank\W?\d+\W+)?(?:ERROR|CRITICAL|FATAL)\b|\[(?:ERROR|CRITICAL)\]")
"""A logger that says ERROR is believed."""
_WARNING = re.compile(
    r"""
    ^\W*(?:rank\W?\d+\W+)?(?:
        \[?W\d{3,4}\ \d\d:\d\d | W\d{4}\ \d\d:\d\d | W0000
      | \[?(?:WARN(?:ING)?|INFO|DEBUG|NOTICE|NOTE|HINT|TIP)\b
    )
  | \d\d:\d\d:\d\d\S*\W{1,5}(?:\S{1,60}\W{1,5}){0,2}\[?(?:WARN(?:ING)?|INFO|DEBUG)\b
  | \[(?:WARN(?:ING)?|INFO|DEBUG)(?:\]|\|)
  | ^[\w.]{1,60}(?:\s\(\S+\s\S+\))?\s?[-:|]\s?(?:WARN(?:ING)?|INFO|DEBUG)\b
  | -\ (?:WARN(?:ING)?|INFO|DEBUG)\ -
  | \b\w*Warning:\ | ^\s*wandb:\ (?:WARNING|Currently|Syncing|Tracking|Run\ )
  | ^\s*warnings\.warn\(
  """,
    re.VERBOSE,
)


def is_benign(line: str) -> bool:
    """Whether healthy programs print this line."""
    return _BENIGN.search(line) is not None and _ERROR.search(line) is None


def is_only_warning(line: str) -> bool:
    """Whether the line's own logger calls it less than an error."""
    return _WARNING.search(line) is not None

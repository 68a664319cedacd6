"""Arguments, configuration files and resource requests that are wrong.

Sources: argparse, click, Hydra/OmegaConf, pydantic, Lightning, Transformers, DeepSpeed, Megatron,
sbatch's and srun's messages (slurm's src/common/slurm_errno.c).
"""

from __future__ import annotations

from monitor.diagnose.model import FailureClass as F
from monitor.diagnose.model import Trust
from monitor.diagnose.rule import rule

CONFIG_RULES = (
    rule(
        F.CONFIG_ERROR,
        Trust.CAUSE,
        "omegaconf|hydra|interpolationkeyerror|configattributeerror|configkeyerror|"
        "missingmandatoryvalue|configcompositionexception|missingconfigexception",
        r"omegaconf\.errors|hydra\.errors|interpolationkeyerror|configattributeerror|"
        r"configkeyerror|missingmandatoryvalue|configcompositionexception|missingconfigexception|"
        r"could not override|hydra.{0,40}(?:instantiat|could not|cannot)",
    ),
    rule(
        F.CONFIG_ERROR,
        Trust.CAUSE,
        "error: |parser key",
        r"^[\w./-]+\.py: error: |parser key \S+: ",
    ),
    rule(
        F.CONFIG_ERROR,
        Trust.CAUSE,
        "unrecognized argument|the following arguments are required|invalid choice|"
        "no such option|expected one argument|expected at least one argument|not allowed with arg|"
        "unrecognized option|unknown option|invalid option|missing option|missing argument|"
        "invalid value for|unexpected extra argument|not used by the hfargumentparser|"
        "ambiguous option|unknown argument|invalid int value|invalid float value",
    ),
    rule(
        F.CONFIG_ERROR,
        Trust.CAUSE,
        "batch job submission failed|unable to allocate resources|invalid account|"
        "invalid partition|"
        "invalid qos|invalid generic resource|node configuration is not available|"
        "more processors requested|invalid feature|invalid time limit|job violates|"
        "not permitted to use|invalid job array|memory specification can not be satisfied|"
        "requested time limit is invalid|invalid node name|node count specification invalid|"
        "requested nodes not in this partition|job/step config|srun: fatal|unable to create step",
        r"batch job submission failed(?!.*(?:socket timed out|unable to contact|connection))|"
        r"unable to allocate resources(?!.*(?:socket timed out|unable to contact|connection))|"
        r"invalid account|"
        r"invalid partition|invalid qos|invalid generic resource|"
        r"node configuration is not available|"
        r"more processors requested|invalid feature|invalid time limit|job violates|"
        r"not permitted to use|invalid job array|can not be satisfied|requested time limit is|"
        r"invalid node name|node count specification|not in this partition|"
        r"unable to create step.{0,80}(?:invalid|more proc|not available|specification)",
    ),
    rule(
        F.CONFIG_ERROR,
        Trust.CAUSE,
        "validationerror|validation error for|validation errors for|scannererror|parsererror|"
        "misconfigurationexception|configurationerror|configerror|config error|constructorerror|"
        "jsondecodeerror|tomldecodeerror|usageerror|argumenterror|badparameter|composererror",
        r"pydantic\S*validationerror|validation errors? for \w|yaml\S*(?:scanner|parser|"
        r"constructor|"
        r"composer)error|(?:scanner|parser\.parser|constructor|composer)error|"
        r"misconfigurationexception|configurationerror|\bconfigerror|tomldecodeerror|"
        r"usageerror|argumenterror|badparameter|"
        r"jsondecodeerror(?=.*(?:config|\.json))|(?:ConfigFile|Config)Error\b|"
        r"^config error",
    ),
    rule(
        F.CONFIG_ERROR,
        Trust.CAUSE,
        "divisible|not equal to|world_size|world size|batch related parameters|batch size",
        r"(?:assert|error).{0,160}\b(?:divisible|batch related parameters)|"
        r"(?:world[_ ]size|batch[_ ]size|num_\w+|hidden[_ ]size|heads?|layers?|tensor|pipeline)"
        r".{0,80}(?:not |be )divisible|check batch related parameters|"
        r"(?:assert|error).{0,80}(?:world[_ ]size|batch[_ ]size).{0,60}"
        r"(?:must|should|not equal|does not|!=|mismatch)",
    ),
    rule(
        F.CONFIG_ERROR,
        Trust.CAUSE,
        "trainingarguments|unexpected keyword|requires the|is not supported|you have set|"
        "not a valid|must be one of|unknown model|please specify|is not a valid|should be one of|"
        "got an invalid|unsupported|config",
        r"error:.{0,60}trainingarguments.{0,40}unexpected keyword|"
        r"error:.{0,200}(?:--\w[\w-]+|`(?:args\.)?\w+`|config\w*|argument|option|flag|setting)"
        r".{0,120}(?:requires?|must be|must have|must specify|should be|need to be|needs? to|"
        r"is not (?:a )?valid|invalid|not supported|"
        r"incompatible|mutually exclusive|cannot be (?:used|set|combined|specified)|"
        r"unrecognized|unknown|is missing|is required|not found in|don't match|not set)|"
        r"error:.{0,40}(?:invalid|unknown|unsupported|unrecognized|missing|bad) "
        r"(?:config\w*|argument|option|key|parameter|setting|value for|field|flag)|"
        r"error:.{0,60}(?:is not in list of|must be one of|should be one of|please specify|"
        r"please set|you must specify)",
    ),
    rule(
        F.CONFIG_ERROR,
        Trust.CAUSE,
        "command not found|can't open file|execve|module(s) are unknown|environmentnamenotfound|"
        "could not find conda environment|unable to locate a modulefile|"
        "invalid device ordinal|no such file or directory",
        r"command not found|python\S*: can't open file|execve\(?\)?:|module\(s\) are unknown|"
        r"environmentnamenotfound|could not find conda environment|unable to locate a modulefile|"
        r"invalid device ordinal|"
        r"(?:slurm_script|bash|sh):.{0,80}no such file",
    ),
    rule(
        F.CONFIG_ERROR,
        Trust.CAUSE,
        "driver on your system is too old|driver version is insufficient|no kernel image is|"
        "no cuda gpus are available|torch not compiled with cuda|no cuda-capable device|"
        "found no nvidia driver",
    ),
)

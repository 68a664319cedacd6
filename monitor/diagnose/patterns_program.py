"""What is written about arguments and configuration, losses that are not finite, and the network.

DeepSpeed's and Apex's ``OVERFLOW!`` lines and Megatron's ``number of nan iterations: 0`` are
healthy. A gradient norm of ``inf`` is how a loss scaler finds its scale, so it does not count.

Sources: argparse, click, Hydra/OmegaConf, pydantic, Lightning, Transformers, DeepSpeed, Megatron,
sbatch's and srun's messages (slurm's src/common/slurm_errno.c); torch's c10d/socket.cpp and
TCPStore.cpp, gloo's transport, urllib3/requests, errno(3).
"""

from __future__ import annotations

from submitrain.monitor.diagnose.model import FailureClass as F
from submitrain.monitor.diagnose.patterns import Table, cause, exception, mention, victim

CONFIG_RULES: Table = {
    "omegaconf": cause(
        F.CONFIG_ERROR,
        "omegaconf|hydra|interpolationkeyerror|configattributeerror|configkeyerror|"
        "missingmandatoryvalue|configcompositionexception|missingconfigexception",
        r"omegaconf\.errors|hydra\.errors|interpolationkeyerror|configattributeerror|"
        r"configkeyerror|missingmandatoryvalue|configcompositionexception|missingconfigexception|"
        r"could not override|hydra.{0,40}(?:instantiat|could not|cannot)",
    ),
    "parser-key": cause(
        F.CONFIG_ERROR, "error: |parser key", r"^[\w./-]+\.py: error: |parser key \S+: "
    ),
    "unrecognized-argument": cause(
        F.CONFIG_ERROR,
        "unrecognized argument|the following arguments are required|invalid choice|"
        "no such option|expected one argument|expected at least one argument|not allowed with arg|"
        "unrecognized option|unknown option|invalid option|missing option|missing argument|"
        "invalid value for|unexpected extra argument|not used by the hfargumentparser|"
        "ambiguous option|unknown argument|invalid int value|invalid float value",
    ),
    "batch-job-submission-failed": cause(
        F.CONFIG_ERROR,
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
    "validationerror": cause(
        F.CONFIG_ERROR,
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
    "sizes-do-not-divide": cause(
        F.CONFIG_ERROR,
        "divisible|not equal to|world_size|world size|batch related parameters|batch size",
        r"(?:assert|error).{0,160}\b(?:divisible|batch related parameters)|"
        r"(?:world[_ ]size|batch[_ ]size|num_\w+|hidden[_ ]size|heads?|layers?|tensor|pipeline)"
        r".{0,80}(?:not |be )divisible|check batch related parameters|"
        r"(?:assert|error).{0,80}(?:world[_ ]size|batch[_ ]size).{0,60}"
        r"(?:must|should|not equal|does not|!=|mismatch)",
    ),
    "trainingarguments": cause(
        F.CONFIG_ERROR,
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
    "command-not-found": cause(
        F.CONFIG_ERROR,
        "command not found|can't open file|execve|module(s) are unknown|environmentnamenotfound|"
        "could not find conda environment|unable to locate a modulefile|"
        "invalid device ordinal|no such file or directory",
        r"command not found|python\S*: can't open file|execve\(?\)?:|module\(s\) are unknown|"
        r"environmentnamenotfound|could not find conda environment|unable to locate a modulefile|"
        r"invalid device ordinal|"
        r"(?:slurm_script|bash|sh):.{0,80}no such file",
    ),
    "driver-on-your-system-is-too-old": cause(
        F.CONFIG_ERROR,
        "driver on your system is too old|driver version is insufficient|no kernel image is|"
        "no cuda gpus are available|torch not compiled with cuda|no cuda-capable device|"
        "found no nvidia driver",
    ),
}


_LOSS = (
    r"(?<!best[ _])(?<!min[ _])(?<!lowest[ _])(?:\b|_)loss(?:es)?"
    r"(?:[_/ ]?(?!scale|scaler)\w{1,20})?"
)

NUMBERS_RULES: Table = {
    "loss-nan": cause(
        F.NAN_LOSS,
        "nan|inf",
        _LOSS + r"['\"]?\s*[:=|]?\s*\(?(?:tensor\()?['\"]?[-+]?(?:nan|inf)\b(?!\s*(?:to|->))",
        any_level=True,
    ),
    "grad-norm-nan": exception(
        F.NAN_LOSS,
        "nan",
        r"(?:grad(?:ient)?[_ ]?norm|\bgnorm|perplexity|\bppl|train_err)['\"]?\s*[:=|]?\s*"
        r"(?:tensor\()?['\"]?nan\b",
        any_level=True,
    ),
    "nan-found": cause(
        F.NAN_LOSS,
        "nan|inf",
        r"loss (?:is|was|became|becomes|has become|went|turned|value is|contains|of|exploded)\W+"
        r"(?:now |to )?(?:nan|inf\b|infinit|not finite|non-?finite)|"
        r"(?:nan|inf(?:inite)?)(?: or (?:nan|inf\w*))? (?:loss|gradients?|grad norm|"
        r"values? in|in loss|"
        r"found in (?:input|loss|grad|param|weight|output)|detected|encountered)|"
        r"(?:found|detected|encountered|got|produced|contains?|returned|hit)\s+(?:an? )?"
        r"(?:either )?[`'\"]?(?:nan|inf)s?\b(?!.{0,20}(?:iterations|0 nan))|"
        r"loss.{0,30}is (?:nan|inf)\b|found nan in",
    ),
    "loss-not-finite": cause(
        F.NAN_LOSS,
        "finite",
        r"(?:loss|grad\w*(?: norm)?|norm|logits?|weights?|params?).{0,60}"
        r"(?:non-?finite|not finite|infinite)|"
        r"non-?finite (?:loss|grad|norm|value)|NotFiniteError",
    ),
    "returned-nan-values": cause(
        F.NAN_LOSS,
        "returned nan values|loss scale already at minimum|minimum loss scale reached|"
        "loss is probably exploding|cannot decrease scale anymore|"
        "loss scale reached minimum|loss exploded|loss diverged|training diverged",
    ),
    "invalid-values": cause(
        F.NAN_LOSS,
        "invalid values|nan",
        r"invalid values:?\s*(?:$|tensor\(\[+\s*nan)|number of nan iterations:\s*[1-9]|"
        r"probability tensor contains either",
    ),
}


NETWORK_RULES: Table = {
    "max-retries-exceeded": cause(
        F.NETWORK_ERROR,
        "max retries exceeded|name resolution|name or service not known|getaddrinfo|"
        "could not resolve|resolve host|network is unreachable|no route to host|"
        "failed to establish a new connection|nodename nor servname|nameresolutionerror",
        r"max retries exceeded|name resolution|name or service not known|"
        r"getaddrinfo.{0,20}(?:fail|error)|could not resolve|network is unreachable|"
        r"no route to host|failed to establish a new connection|nodename nor servname|"
        r"nameresolutionerror",
    ),
    "cannot-connect": cause(
        F.NETWORK_ERROR,
        "couldn't connect to|can't connect to|cannot connect to|could not connect to|"
        "failed to connect|unable to connect|couldn't reach|connectionerror|"
        "offlinemodeisenabled|localentrynotfounderror|unable to contact slurm|unable to contact",
        r"(?:couldn't|can't|cannot|could not|failed to|unable to) (?:connect|reach|contact)\b|"
        r"(?:^|[\s.])(?:requests\.exceptions\.|urllib3\.exceptions\.)?ConnectionError\b|"
        r"offlinemodeisenabled|localentrynotfounderror",
    ),
    "read-timed-out": cause(
        F.NETWORK_ERROR,
        "read timed out|readtimeout|connecttimeout|connect timeout|connection timed out|"
        "operation timed out|handshake timed out|request timed out|timeouterror|"
        "socket timed out|gateway time",
        r"read timed out|readtimeout|connecttimeout|connect timeout=|connection timed out|"
        r"operation timed out|handshake.{0,20}timed out|request timed out|"
        r"timeouterror: \[errno 110\]|socket timed out on send/recv|gateway time-?out",
    ),
    "client-socket-has-timed-out": cause(
        F.NETWORK_ERROR,
        "client socket has timed out|rendezvousconnectionerror|rendezvoustimeouterror|"
        "rendezvous|tcpstore|store",
        r"client socket has timed out|rendezvousconnectionerror|rendezvoustimeouterror|"
        r"rendezvous (?:has )?(?:timed out|failed)|timed out .{0,60}(?:rendezvous|clients joined)|"
        r"(?:connection to|connect to) the .{0,20}store .{0,20}failed|"
        r"tcpstore.{0,80}(?:timed out|failed|timeout after)",
    ),
    "address-already-in-use": cause(
        F.NETWORK_ERROR,
        "address already in use|eaddrinuse|server socket has failed|"
        "cannot assign requested address",
        r"address already in use|eaddrinuse|server socket has failed|"
        r"error.{0,60}cannot assign requested address",
    ),
    "tls-failed": cause(
        F.NETWORK_ERROR,
        "certificate|sslerror|ssl:|ssleof|tls",
        r"certificate.{0,20}verify.{0,10}fail|sslerror|ssleoferror|"
        r"eof occurred in violation of protocol|"
        r"(?:ssl|tls).{0,20}(?:handshake|connect).{0,30}(?:fail|error)",
    ),
    "http-5xx": cause(
        F.NETWORK_ERROR,
        "server error|too many requests|service unavailable|bad gateway|rate limit|http error|"
        "client error|internal server error|returned error code",
        r"\b50[0234] (?:server error|internal|service|bad gateway|gateway)|"
        r"\b429\b.{0,30}(?:too many|client error|rate)|too many requests|service unavailable|"
        r"bad gateway|hit(?:ting)? (?:the )?rate limit|rate limit (?:exceeded|reached)|"
        r"\b408 (?:client error|request)|returned error code: (?:429|50\d)",
    ),
    "incompleteread": cause(
        F.NETWORK_ERROR,
        "incompleteread|chunkedencodingerror|protocolerror|remotedisconnected|"
        "without response|temporary failure|proxyerror|curl:|curl error|rpc failed|early eof|"
        "remote end hung up",
        r"incompleteread|chunkedencodingerror|protocolerror|remotedisconnected|"
        r"without response|temporary failure|proxyerror|curl: \(\d+\)|curl error|rpc failed|"
        r"early eof|remote end hung up",
    ),
    "connection-reset": victim(
        F.NETWORK_ERROR,
        "connection reset|reset by peer|connection refused|broken pipe|closed by peer|"
        "connection was likely closed|connection closed|brokenpipeerror|pair closure|"
        "connection aborted",
        r"connection reset|reset by peer|connection refused|"
        r"(?:error|errno 32|fail|gloo|nccl|send|recv|store).{0,60}broken pipe|brokenpipeerror|"
        r"connection closed by (?:peer|remote)|connection was likely closed|pair closure|"
        r"connection aborted",
    ),
    "gloo-failed": victim(
        F.NETWORK_ERROR,
        "gloo|distnetworkerror|diststoreerror|recvvalue|sendbytes|store is not available",
        r"gloo.{0,120}(?:fail|error|closed|timed out|refused)|distnetworkerror|diststoreerror|"
        r"(?:recvvalue|sendbytes|recvbytes|recvvector) failed|store is not available",
    ),
    "network-error": mention(
        F.NETWORK_ERROR,
        "network error|zero bytes were transmitted",
        r"network error|zero bytes were transmitted",
        any_level=True,
    ),
}

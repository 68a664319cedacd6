"""Credentials: Hugging Face, Weights & Biases, clouds, registries, ssh, munge."""

from __future__ import annotations

from monitor.diagnose.model import FailureClass as F
from monitor.diagnose.model import Trust
from monitor.diagnose.rule import rule

ACCESS_RULES = (
    rule(
        F.AUTH_ERROR,
        Trust.CAUSE,
        "gated|repository not found|repositorynotfounderror|gatedrepoerror",
        r"gated ?repo|repository ?not ?found|repo is gated",
        any_level=True,
    ),
    rule(
        F.AUTH_ERROR,
        Trust.CAUSE,
        "client error|unauthorized|forbidden|status|http|code:|error code|responded with",
        r"\b40[13] (?:client error|unauthorized|forbidden)|(?:http|status|code)\D{0,20}40[13]\b|"
        r"\b(?:unauthorized|forbidden)\b.{0,40}(?:url|token|access|request)|"
        r"error.{0,40}\b(?:unauthorized|forbidden)\b|unauthorized: |responded with 40[13]",
    ),
    rule(
        F.AUTH_ERROR,
        Trust.CAUSE,
        "api_key|api key|invalid token|invalid user token|token is required|not logged in|"
        "invalid username or password|invalid credentials|login required|must be logged in|"
        "authenticate|authentication|authenticationerror|login()|huggingface-cli login|"
        "usage error: api_key",
        r"api[_ ]?key\W.{0,40}(?:not configured|invalid|missing|incorrect|not valid|must be)|"
        r"(?:invalid|incorrect|missing|no|expired|wrong) (?:user |access |auth\w* |wandb |api )?"
        r"(?:token|api[_ ]?key|credentials?)\b|"
        r"token is (?:required|invalid|expired|not valid)|not logged in|"
        r"invalid username or password|"
        r"login required|must be (?:logged in|authenticated)|failed to authenticate|"
        r"could not authenticate|authentication (?:failed|required|error|token)|"
        r"authenticationerror|localtokennotfounderror|please log in|"
        r"(?:error|denied|restricted|private).{0,200}huggingface-cli login|unauthenticated",
    ),
    rule(
        F.AUTH_ERROR,
        Trust.CAUSE,
        "access to model|access denied|accessdenied|nocredential|unable to locate credentials|"
        "expiredtoken|defaultcredentialserror|invalidaccesskeyid|signaturedoesnotmatch|"
        "pull access denied|refresherror|access_denied",
        r"access to model .{0,80}is restricted|access ?denied|nocredential|"
        r"unable to locate credentials|expiredtoken|"
        r"defaultcredentialserror|invalidaccesskeyid|signaturedoesnotmatch|refresherror|"
        r"access_denied",
    ),
    rule(
        F.AUTH_ERROR,
        Trust.CAUSE,
        "permission denied|host key verification",
        r"permission denied \((?:publickey|password|keyboard|gssapi)|host key verification failed|"
        r"wandb.{0,80}permission denied|commerror.{0,60}permission|permission denied, please try",
    ),
    rule(
        F.AUTH_ERROR,
        Trust.CAUSE,
        "permission to|do not have|don't have",
        r"(?:do not|don't|does not) have (?:the )?(?:required |sufficient |write |read )?"
        r"(?:permissions?|access|rights?)\b.{0,40}(?:to|for|on)",
    ),
    rule(
        F.AUTH_ERROR,
        Trust.CAUSE,
        "munge|credential|kerberos|key has expired|required key not available",
        r"munge.{0,80}(?:unauthorized|invalid|expired|replayed|decode failed)|"
        r"(?:auth\w*|kerberos) credential.{0,40}(?:invalid|expired|not found)|"
        r"credentials? (?:has |have )?expired|key has expired|required key not available|"
        r"could not read (?:username|password)",
    ),
)

"""Loss and gradients that are not finite, as trainers print them.

DeepSpeed's and Apex's ``OVERFLOW!`` lines and Megatron's ``number of nan iterations: 0`` are
healthy. A gradient norm of ``inf`` is how a loss scaler finds its scale, so it does not count.
"""

from __future__ import annotations

from monitor.diagnose.model import FailureClass as F
from monitor.diagnose.model import Trust
from monitor.diagnose.rule import rule

_LOSS = (
    r"(?<!best[ _])(?<!min[ _])(?<!lowest[ _])(?:\b|_)loss(?:es)?"
    r"(?:[_/ ]?(?!scale|scaler)\w{1,20})?"
)

NUMBERS_RULES = (
    rule(
        F.NAN_LOSS,
        Trust.CAUSE,
        "nan|inf",
        _LOSS + r"['\"]?\s*[:=|]?\s*\(?(?:tensor\()?['\"]?[-+]?(?:nan|inf)\b(?!\s*(?:to|->))",
        any_level=True,
    ),
    rule(
        F.NAN_LOSS,
        Trust.EXCEPTION,
        "nan",
        r"(?:grad(?:ient)?[_ ]?norm|\bgnorm|perplexity|\bppl|train_err)['\"]?\s*[:=|]?\s*"
        r"(?:tensor\()?['\"]?nan\b",
        any_level=True,
    ),
    rule(
        F.NAN_LOSS,
        Trust.CAUSE,
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
    rule(
        F.NAN_LOSS,
        Trust.CAUSE,
        "finite",
        r"(?:loss|grad\w*(?: norm)?|norm|logits?|weights?|params?).{0,60}"
        r"(?:non-?finite|not finite|infinite)|"
        r"non-?finite (?:loss|grad|norm|value)|NotFiniteError",
    ),
    rule(
        F.NAN_LOSS,
        Trust.CAUSE,
        "returned nan values|loss scale already at minimum|minimum loss scale reached|"
        "loss is probably exploding|cannot decrease scale anymore|"
        "loss scale reached minimum|loss exploded|loss diverged|training diverged",
    ),
    rule(
        F.NAN_LOSS,
        Trust.CAUSE,
        "invalid values|nan",
        r"invalid values:?\s*(?:$|tensor\(\[+\s*nan)|number of nan iterations:\s*[1-9]|"
        r"probability tensor contains either",
    ),
)

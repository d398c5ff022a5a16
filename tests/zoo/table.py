"""The table of docs/zoo.md: what of every model is reconstructed, and why the rest is left."""

from collections import Counter

import sngd_compile as sngd
from zoo import ZOO

WIDTH = 60


def table() -> str:
    """Return one line per model, and one for each reason."""
    lines = [f"{'model':<14}{'parameters':>12}{'reconstructed':>16}  left"]
    for case in ZOO:
        model = case.build()
        plan = sngd.explain(model)
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        share = sum(site.parameter_count for site in plan.sites) / sum(sizes.values())
        reasons: Counter[str] = Counter()
        for skip in plan.skips:
            reasons[shortened(skip.reason)] += sizes.get(skip.name, 0)
        texts = [f"{count:,}: {reason}" for reason, count in reasons.most_common() if count]
        head = f"{case.name:<14}{sum(sizes.values()):>12,}{share:>15.2%}   "
        lines += [head + (texts[0] if texts else "")]
        lines += [" " * len(head) + text for text in texts[1:]]
    return "\n".join(line.rstrip() for line in lines)


def shortened(reason: str) -> str:
    """Cut a reason at the first pause after the width of a line."""
    text = reason.split(" (node")[0].split(": its own is")[0].split(": its local Fisher")[0]
    return text if len(text) <= WIDTH else f"{text[:WIDTH].rstrip()}..."

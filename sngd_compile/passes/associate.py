"""`(W' R) x~` or `W' (R x~)`: linear layers may choose at run time, by their shapes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from sngd_compile.rules.linear import Linear
from sngd_compile.runtime.reparameterise import fold, local_linear
from sngd_compile.site import Site


def associate_(graph: fx.Graph, sites: Sequence[Site]) -> None:
    """Replace `F.linear(x, *fold(...))` by `local_linear`, which picks the cheaper side.

    Sound because the product is associative: same function, same gradients. Other calls keep the
    weight side: a convolution has far more rows than outputs.

    Source: docs/method.md, cost.
    """
    for site in sites:
        for node, _ in site.uses:
            if not isinstance(site.rule, Linear):
                continue
            call = site.rule.bind(node, {})
            weight, bias = call.arguments["weight"], call.arguments["bias"]
            folded = weight.args[0]
            fisher, weight_prime, bias_prime = folded.args
            if bias is not None and bias_prime is None:
                continue  # an ordinary bias is added by F.linear itself
            with graph.inserting_before(node):
                arguments = (fisher, call.arguments["input"], weight_prime, bias_prime)
                local = graph.call_function(local_linear, arguments)
            node.replace_all_uses_with(local)
            graph.erase_node(node)
    for node in reversed(graph.nodes):
        if not node.users and (node.target is fold or _is_half(node)):
            graph.erase_node(node)


def _is_half(node: fx.Node) -> bool:
    source = node.args[0] if node.args else None
    return node.op == "call_function" and isinstance(source, fx.Node) and source.target is fold

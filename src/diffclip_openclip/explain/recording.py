"""The calls of modules during a forward pass, through torch's own hooks, which are gone when it is over."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Call(NamedTuple):
    """What a module was given, and the tensor that it returned (the first one, if it returned several)."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor


@contextmanager
def recorded(model: nn.Module, modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Call]]:
    """The last call of each of ``modules`` in the body, during which ``model`` is in evaluation mode and runs eagerly.

    Afterwards, also if the body raises, every submodule is in its own mode again and no hook is left.
    """
    calls: dict[nn.Module, Call] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[module] = Call(args, kwargs, output[0] if isinstance(output, tuple) else output)

    modes = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        stack.callback(_restore, modes)
        model.eval()
        # compiled code does not look for hooks
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in modules:
            stack.enter_context(module.register_forward_hook(record, with_kwargs=True))
        yield calls


def _restore(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training

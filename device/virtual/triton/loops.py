"""Loops of kernels: what counts their turns is a number of the device, which has a dtype."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from typing import Any

from triton.runtime import interpreter
from triton.runtime.interpreter import ASTTransformer, FunctionRewriter


class Turn(int):
    """The number of a turn: Python's, so that sizes and shapes can be made of it, and one that takes a dtype."""

    def to(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - as ``tl.tensor.to`` has them
        """Return it as a block of one element, in a dtype."""
        return interpreter.interpreter_semantic.to_tensor(int(self)).to(*arguments, **named)


def turns(numbers: Iterable[Any]) -> Iterator[Any]:
    """Yield what a loop goes through, integers as turns."""
    for number in numbers:
        yield Turn(number) if type(number) is int else number


class Rewriter(ASTTransformer):
    """Triton's own changes to a kernel's source, and loops over turns."""

    def visit_For(self, node: ast.For) -> ast.AST:  # noqa: N802 - as ``ast`` has it
        """Have a loop go through turns."""
        changed: ast.AST = self.generic_visit(node)
        semantic = ast.Name(id="interpreter_semantic", ctx=ast.Load())
        function = ast.Attribute(value=semantic, attr=turns.__name__, ctx=ast.Load())
        node.iter = ast.Call(func=function, args=[node.iter], keywords=[])
        return changed


def install() -> None:
    """Let the interpreter rewrite loops."""
    FunctionRewriter.ast_transformer = Rewriter()

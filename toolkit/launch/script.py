"""A notebook as a plain script: the same cells in order, with its parameters as command-line flags."""

import ast

from nbformat import NotebookNode

from toolkit.launch.parameters import literal, read_parameters, tagged

LEFT_OUT = ("interactive", "skip-export", "injected-parameters")
HEAD = '''\
"""Exported from a notebook. `python -P script.py --help` lists its parameters."""

import asyncio

from IPython.display import display

from toolkit.launch.parameters import flags


def wait(awaitable):
    """Run to its end what a cell of the notebook awaited."""

    async def whole():
        return await awaitable

    return asyncio.run(whole())
'''


def script(notebook: NotebookNode) -> str:
    """Python source that does what the notebook's cells do; cells tagged `interactive` or `skip-export` are left out.

    Markdown becomes comments, `await` outside a function waits, a line that only IPython understands becomes a
    comment. ValueError names the cell that cannot be written as a script.
    """
    parts = [HEAD]
    for number, cell in enumerate(notebook.cells, 1):
        if any(tagged(cell, tag) for tag in LEFT_OUT):
            continue
        if cell.cell_type == "markdown":
            parts.append("\n".join(f"# {line}".rstrip() for line in cell.source.splitlines()))
        elif cell.cell_type == "code":
            parts.append(_plain_python(cell.source, number))
        if tagged(cell, "parameters"):
            defaults = {name: parameter.default for name, parameter in read_parameters(notebook).items()}
            parts.append(f"globals().update(flags({literal(defaults)}))")
    return "\n\n".join(part for part in parts if part.strip()) + "\n"


def _plain_python(source: str, number: int) -> str:
    lines = source.splitlines()
    whole = source.lstrip().startswith("%%")
    lines = [f"# {line}" if whole or line.lstrip().startswith(("%", "!")) else line for line in lines]
    try:
        tree = ast.parse("\n".join(lines))
    except SyntaxError as error:
        raise ValueError(f"cell {number} is not plain Python: {error}; tag it `skip-export`, or rewrite it") from error
    return _without_await(lines, tree, number)


def _without_await(lines: list[str], tree: ast.Module, number: int) -> str:
    """Replace each `await x` that stands outside a function by `wait(x)`."""
    encoded = [line.encode() for line in lines]  # ast counts bytes
    edits: list[tuple[int, int, int, bytes]] = []  # line, column, bytes to drop, bytes to put there
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.AsyncFor | ast.AsyncWith) or (isinstance(node, ast.comprehension) and node.is_async):
            raise ValueError(f"cell {number} uses `async for` or `async with` outside a function: move it into one")
        if isinstance(node, ast.Await):
            line, column = node.lineno - 1, node.col_offset
            after = encoded[line][column + len("await") :]
            edits.append((line, column, len("await") + len(after) - len(after.lstrip()), b"wait("))
            edits.append((node.end_lineno - 1, node.end_col_offset, 0, b")"))  # type: ignore[operator]
        todo.extend(ast.iter_child_nodes(node))
    for line, column, drop, put in sorted(edits, reverse=True):
        encoded[line] = encoded[line][:column] + put + encoded[line][column + drop :]
    return "\n".join(line.decode() for line in encoded)

"""The part of a notebook on which one of its names rests: a program slice, found by its names."""

import ast
import symtable


def names(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """The names that a statement binds, and those that it uses, inside its functions, too."""
    top = symtable.symtable(ast.unparse(statement), "", "exec")
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    used, tables = set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        symbols = [s for s in table.get_symbols() if table is top or s.is_global()]
        used |= {s.get_name() for s in symbols if s.is_referenced()}
    if isinstance(statement, ast.For):
        used -= {node.id for node in ast.walk(statement.target) if isinstance(node, ast.Name)}
    return bound, used


def root(node: ast.expr) -> str | None:
    """The name at the left end of a.b[c].d()."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return getattr(node, "id", None)


def changed(statement: ast.stmt) -> set[str | None]:
    """Names of what a statement may change in place: a[b] = c, a.b = c, a.b(c), or a training."""
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, (ast.Subscript, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            found.add(root(node))
        elif isinstance(node, ast.Expr):
            found.add(root(node.value))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "training.fit":
            found.add(root(node.args[0]))
    return found


def needed(cells: list[str], name: str) -> list[ast.stmt]:
    """The statements of `cells` without which `name` would not be as it is, in their order."""
    statements = [statement for cell in cells for statement in ast.parse(cell).body]
    return [statements[i] for i in rests_on([[s] for s in statements], name)]


def needed_cells(cells: list[str], name: str) -> list[int]:
    """The numbers of the cells that must be run, each as a whole, for `name` to be as it is."""
    return rests_on([ast.parse(cell).body for cell in cells], name)


def rests_on(parts: list[list[ast.stmt]], name: str) -> list[int]:
    """The numbers of the parts of a program without which `name` would not be as it is."""
    imports = [s for p in parts for s in p if isinstance(s, (ast.Import, ast.ImportFrom))]
    modules = set().union(*(names(s)[0] for s in imports))
    wanted, kept = {name}, []
    for i in reversed(range(len(parts))):
        touched, used, certain = set(), set(), set()  # certain: not in the body of a loop
        for statement in parts[i]:
            bound, uses = names(statement)
            used |= uses - certain
            touched |= bound | changed(statement) - modules
            if not isinstance(statement, (ast.For, ast.If, ast.With)):
                certain |= bound
        if touched & wanted:
            kept.append(i)
            wanted -= certain
            wanted |= used
    return kept[::-1]

"""The call graph of the package, read from its source: which functions a call of one of them can reach.

In: the source of awq2trt. Out: a `Walk`, with every function that is reached and every pair of caller and callee.
Nothing is imported or run. Calls are resolved

- by name, through imports, including those inside functions, and through re-exports of packages;
- for methods, by the type of the object, as far as constructors and the annotations of parameters, fields and results
  show it; subscripts and loops take the element's type; properties count as calls;
- for overrides and protocols, by all classes of the package that are instantiated on the way;
- for parameters and fields that hold functions, by all functions, lambdas, bound methods and `partial`s that are passed
  to them on the way. The calls of a nested function count for the function around it.

Calls through `getattr`, dictionaries of functions and libraries that call back are not found, and neither are those
that an imprecise annotation hides.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PACKAGE: Final = "awq2trt"

_WRAPPERS: Final = ("Final", "ClassVar", "Annotated", "AbstractContextManager")
"""Wrappers in annotations, whose argument is the type."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Type:
    """What an expression is, as far as it is known.

    Attributes:
        cls: Qualified name of a class of the package; empty for a container.
        inside: Types of a container's elements; the last one is the type that a loop or a subscript yields.
    """

    cls: str = ""
    inside: tuple[Type | None, ...] = ()

    @property
    def element(self) -> Type | None:
        """The type that a loop or a subscript yields."""
        return self.inside[-1] if self.inside else None


@dataclass
class Class:
    """A class of the package.

    Attributes:
        module: Its module.
        definition: Its source.
        methods: Qualified names of its own functions.
        fields: Annotations of its fields, including those from constructors.
        bases: Qualified names of its bases in the package.
        is_protocol: Whether classes with the same methods are subclasses.
    """

    module: str
    definition: ast.ClassDef
    methods: dict[str, str] = field(default_factory=dict)
    fields: dict[str, ast.expr] = field(default_factory=dict)
    bases: tuple[str, ...] = ()
    is_protocol: bool = False


class Source:
    """All functions, classes and imports of the package, by qualified name."""

    def __init__(self, modules: dict[str, ast.Module]) -> None:
        self.modules = modules
        self.functions: dict[str, tuple[str, str, Function]] = {}  # name -> module, class or "", definition
        self.classes: dict[str, Class] = {}
        self.imports: dict[str, dict[str, str]] = {}

    @classmethod
    def read(cls, root: Path) -> Source:
        """Parses the package below `root`."""
        paths = sorted((root / PACKAGE).rglob("*.py"))
        names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in paths}
        modules = {name.removesuffix(".__init__"): ast.parse(path.read_text("utf-8")) for path, name in names.items()}
        source = cls(modules)
        for module, tree in modules.items():
            source._add_module_(module, tree)
        for found in source.classes.values():
            named = [ast.unparse(base).partition("[")[0] for base in found.definition.bases]
            found.bases = tuple(base for each in named if (base := source.resolve(found.module, each)))
            found.is_protocol = "Protocol" in named
        return source

    def _add_module_(self, module: str, tree: ast.Module) -> None:
        imports = self.imports.setdefault(module, {})
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
                imports.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
        for node in tree.body:
            if isinstance(node, Function):
                self.functions[f"{module}.{node.name}"] = (module, "", node)
            elif isinstance(node, ast.ClassDef):
                self._add_class_(module, node)

    def _add_class_(self, module: str, node: ast.ClassDef) -> None:
        name = f"{module}.{node.name}"
        found = self.classes[name] = Class(module, node)
        for member in node.body:
            if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                found.fields[member.target.id] = member.annotation
            elif isinstance(member, Function):
                found.methods[member.name] = f"{name}.{member.name}"
                self.functions[f"{name}.{member.name}"] = (module, name, member)
        constructor = next((m for m in node.body if isinstance(m, Function) and m.name == "__init__"), None)
        for statement in ast.walk(constructor) if constructor else ():
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            value = statement.value if isinstance(statement, ast.Assign) else None
            for target in targets:
                if isinstance(target, ast.Attribute) and isinstance(value, ast.Name) and constructor:
                    given = [each for each in _parameters(constructor) if each.arg == value.id]
                    found.fields.update((target.attr, each.annotation) for each in given if each.annotation)
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Attribute):
                found.fields.setdefault(statement.target.attr, statement.annotation)

    def resolve(self, module: str, dotted: str) -> str | None:
        """Resolves a dotted name in a module to a qualified name, through re-exports; None if it is not ours."""
        first, _, rest = dotted.partition(".")
        name = self.imports.get(module, {}).get(first) or (first if first == PACKAGE else f"{module}.{first}")
        name = f"{name}.{rest}" if rest else name
        for _ in range(8):
            if name in self.functions or name in self.classes or name in self.modules:
                return name
            owner, _, last = name.rpartition(".")
            if owner in self.classes:
                return self.method(owner, last)
            forwarded = self.imports.get(owner, {}).get(last)
            if forwarded is None:
                return None
            name = forwarded
        return None

    def method(self, cls: str, name: str) -> str | None:
        """Returns the qualified name of a class's method, which may be inherited."""
        found = self.classes.get(cls)
        if found is None:
            return None
        own = found.methods.get(name)
        return own or next((m for base in found.bases if (m := self.method(base, name))), None)

    def field_of(self, cls: str, name: str) -> tuple[str, ast.expr] | None:
        """Returns module and annotation of a class's field, which may be inherited."""
        found = self.classes.get(cls)
        if found is None:
            return None
        if name in found.fields:
            return found.module, found.fields[name]
        return next((f for base in found.bases if (f := self.field_of(base, name))), None)

    def is_a(self, cls: str, base: str) -> bool:
        """Whether a class derives from another, or has all methods of a protocol."""
        if cls == base or any(self.is_a(each, base) for each in self.classes[cls].bases):
            return True
        wanted = self.classes[base]
        return wanted.is_protocol and all(self.method(cls, name) for name in wanted.methods)

    def annotated(self, module: str, annotation: ast.expr | None) -> Type | None:
        """Returns the type that an annotation names."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        if isinstance(annotation, ast.BinOp):
            sides = (self.annotated(module, annotation.left), self.annotated(module, annotation.right))
            return next((side for side in sides if side), None)
        if isinstance(annotation, ast.Subscript):
            inside = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
            types = tuple(self.annotated(module, each) for each in inside)
            wrapped = ast.unparse(annotation.value).rpartition(".")[2] in _WRAPPERS
            return types[0] if wrapped else Type(inside=types)
        if isinstance(annotation, ast.Name | ast.Attribute):
            name = self.resolve(module, ast.unparse(annotation))
            return Type(name) if name in self.classes else None
        return None


@dataclass
class Walk:
    """Everything reachable from an entry point, collected in passes until nothing new turns up.

    Attributes:
        source: Source of the package.
        reached: The functions that are reached.
        made: Classes that are instantiated.
        calls: Pairs of caller and callee.
        handed: Functions that are passed to a parameter of a function, or a field of a class.
    """

    source: Source
    reached: set[str]
    made: set[str] = field(default_factory=set)
    calls: set[tuple[str, str]] = field(default_factory=set)
    handed: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    @classmethod
    def from_entry(cls, source: Source, entry: str) -> Walk:
        """Collects everything that a call of `entry` can reach."""
        walk, before = cls(source, {entry}), -1
        while (size := walk.size()) != before:
            before = size
            for name in sorted(walk.reached):
                _Body(walk, name).visit_all_()
        return walk

    def size(self) -> int:
        """A number that grows with everything that is found."""
        return len(self.reached) + len(self.made) + len(self.calls) + sum(map(len, self.handed.values()))

    def targets(self, cls: str, name: str) -> Iterator[str]:
        """Returns the methods that a call on a declared class can reach."""
        declared = self.source.method(cls, name)
        if declared and not _is_abstract(self.source.functions[declared][2]):
            yield declared
        for made in sorted(self.made):
            found = self.source.method(made, name) if self.source.is_a(made, cls) else None
            if found and found != declared:
                yield found

    def call_(self, caller: str, callee: str) -> None:
        """Records a call."""
        self.calls.add((caller, callee))
        self.reached.add(callee)


class _Body:
    """One function with its types and calls."""

    def __init__(self, walk: Walk, name: str) -> None:
        self.walk, self.source, self.name = walk, walk.source, name
        self.module, self.cls, self.node = walk.source.functions[name]
        self.types: dict[str, Type | None] = {}
        self.nested = {
            node.name for node in ast.walk(self.node) if isinstance(node, Function) and node is not self.node
        }
        self.parameters = [parameter.arg for parameter in _parameters(self.node)]

    def visit_all_(self) -> None:
        """Collects the types of parameters and variables, then every call and property."""
        for node in ast.walk(self.node):
            if isinstance(node, Function):
                for parameter in _parameters(node):
                    self.types[parameter.arg] = self.source.annotated(self.module, parameter.annotation)
        if self.cls:
            self.types |= {"self": Type(self.cls), "cls": Type(self.cls)}
        for node in ast.walk(self.node):
            self._bind_(node)
        for node in ast.walk(self.node):
            if isinstance(node, ast.Call):
                self._call_(node)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                self._property_(node)

    def _bind_(self, node: ast.AST) -> None:
        """Binds the types of names in an assignment, a loop or a `with`."""
        if isinstance(node, ast.Assign):
            self._name_(node.targets[0], self.type_of(node.value))
        elif isinstance(node, ast.AnnAssign):
            self._name_(node.target, self.source.annotated(self.module, node.annotation))
        elif isinstance(node, ast.NamedExpr):
            self._name_(node.target, self.type_of(node.value))
        elif isinstance(node, ast.For | ast.comprehension):
            found = self.type_of(node.iter)
            self._name_(node.target, found.element if found else None)
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            found = self.type_of(node.context_expr)
            self._name_(node.optional_vars, found.element if found and not found.cls else found)

    def _name_(self, target: ast.expr, found: Type | None) -> None:
        if isinstance(target, ast.Name) and found:
            self.types[target.id] = found
        elif isinstance(target, ast.Tuple) and found and len(found.inside) == len(target.elts):
            for each, inside in zip(target.elts, found.inside, strict=True):
                self._name_(each, inside)

    def type_of(self, node: ast.expr) -> Type | None:
        """Returns the type of an expression, as far as it can be determined."""
        if isinstance(node, ast.Name):
            return self.types.get(node.id)
        if isinstance(node, ast.Call):
            return self._result(node)
        if isinstance(node, ast.Tuple):
            return Type(inside=tuple(self.type_of(each) for each in node.elts))
        if isinstance(node, ast.IfExp | ast.BoolOp):
            sides = [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values
            return next((found for side in sides if (found := self.type_of(side))), None)
        if isinstance(node, ast.Subscript):
            owner = self.type_of(node.value)
            return owner.element if owner else None
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value)
            annotated = self.source.field_of(owner.cls, node.attr) if owner else None
            if annotated:
                return self.source.annotated(*annotated)
            method = self.source.method(owner.cls, node.attr) if owner else None
            return self._returned(method) if method and _is_property(self.source.functions[method][2]) else None
        return None

    def _result(self, node: ast.Call) -> Type | None:
        named = self._named(node.func)
        if named in self.source.classes:
            return Type(named)
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("values", "items", "get", "pop", "copy"):
            container = self.type_of(node.func.value)
            if container and not container.cls:
                inside = Type(inside=container.inside[-2:])
                return {"items": Type(inside=(inside,)), "values": container, "copy": container}.get(
                    node.func.attr, container.element
                )
        return self._returned(next(iter(self._callees(node.func)), None))

    def _returned(self, function: str | None) -> Type | None:
        if function is None or function not in self.source.functions:
            return None
        module, cls, definition = self.source.functions[function]
        if cls and definition.returns is not None and ast.unparse(definition.returns) in ("Self", "cls"):
            return Type(cls)
        return self.source.annotated(module, definition.returns)

    def _named(self, node: ast.expr) -> str | None:
        """Returns the function, class or module that a name means here, unless it is a variable."""
        if isinstance(node, ast.Name):
            if node.id == "cls" and self.cls:
                return self.cls
            return None if node.id in self.types else self.source.resolve(self.module, node.id)
        if isinstance(node, ast.Attribute) and (owner := self._named(node.value)):
            return self.source.resolve(self.module, f"{owner}.{node.attr}")
        return None

    def _callees(self, node: ast.expr) -> list[str]:
        """Returns the functions that calling an expression can reach."""
        named = self._named(node)
        if named in self.source.functions:
            return [named]
        if isinstance(node, ast.Name) and node.id in self.parameters:
            return sorted(self.walk.handed.get((self.name, node.id), ()))
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value)
            if owner and owner.cls:
                return [*self.walk.targets(owner.cls, node.attr), *self._held(owner.cls, node.attr)]
        return []

    def _held(self, cls: str, name: str) -> list[str]:
        """Returns the functions that a field was given."""
        return sorted(self.walk.handed.get((cls, name), ()))

    def _call_(self, node: ast.Call) -> None:
        named = self._named(node.func)
        if named in self.source.classes:
            self.walk.made.add(named)
            self._construct_(named, node)
            return
        for callee in self._callees(node.func):
            self.walk.call_(self.name, callee)
            definition = self.source.functions[callee][2]
            bound = isinstance(node.func, ast.Attribute) and bool(self.source.functions[callee][1])
            names = [parameter.arg for parameter in _parameters(definition)][bound and not _is_static(definition) :]
            self._hand_(callee, names, node)

    def _construct_(self, cls: str, node: ast.Call) -> None:
        constructors = [self.source.method(cls, name) for name in ("__init__", "__post_init__")]
        for constructor in constructors:
            if constructor:
                self.walk.call_(self.name, constructor)
        given = constructors[0]
        fields = list(self.source.classes[cls].fields)
        names = [each.arg for each in _parameters(self.source.functions[given][2])][1:] if given else fields
        self._hand_(cls, names, node)
        if given:
            self._hand_(given, names, node)
            for name in fields:  # `self._name = name`
                self.walk.handed.setdefault((cls, name), set()).update(self._held(cls, name.lstrip("_")))

    def _hand_(self, callee: str, names: Sequence[str], node: ast.Call) -> None:
        """Records the functions among a call's arguments."""
        given = [*zip(names, node.args, strict=False), *((each.arg, each.value) for each in node.keywords if each.arg)]
        for name, value in given:
            functions = self._functions_in(value)
            if functions:
                self.walk.handed.setdefault((callee, name), set()).update(functions)

    def _functions_in(self, node: ast.expr) -> set[str]:
        """Returns the functions in an argument; a lambda or a nested function counts as the function around it."""
        if isinstance(node, ast.Lambda) or (isinstance(node, ast.Name) and node.id in self.nested):
            return {self.name}
        if isinstance(node, ast.IfExp):
            return self._functions_in(node.body) | self._functions_in(node.orelse)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("partial", "functools.partial") and node.args:
            return self._functions_in(node.args[0])
        if isinstance(node, ast.Attribute | ast.Name):
            owner = self.type_of(node.value) if isinstance(node, ast.Attribute) else None
            if owner and isinstance(node, ast.Attribute) and self.source.field_of(owner.cls, node.attr):
                return set(self._held(owner.cls, node.attr))
            return {name for name in self._callees(node) if not _is_property(self.source.functions[name][2])}
        return set()

    def _property_(self, node: ast.Attribute) -> None:
        owner = self.type_of(node.value)
        for callee in self.walk.targets(owner.cls, node.attr) if owner and owner.cls else ():
            if _is_property(self.source.functions[callee][2]):
                self.walk.call_(self.name, callee)


def _parameters(function: Function) -> list[ast.arg]:
    arguments = function.args
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]


def _decorators(function: Function) -> set[str]:
    return {ast.unparse(each).rpartition(".")[2] for each in function.decorator_list}


def _is_property(function: Function) -> bool:
    return bool(_decorators(function) & {"property", "cached_property"})


def _is_static(function: Function) -> bool:
    return "staticmethod" in _decorators(function)


def _is_abstract(function: Function) -> bool:
    """Whether it is only documentation: a protocol's method, or one that must be overridden."""
    rest = [each for each in function.body if not isinstance(each, ast.Expr)]
    return "abstractmethod" in _decorators(function) or not rest

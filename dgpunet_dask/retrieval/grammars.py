"""Which grammar reads a language, and what counts as a definition there. Pure.

A grammar's definitions are written as ``kind: node node; kind: node`` for nodes whose name is their field `name`, and as
tree-sitter queries for all others. A query captures the definition under its kind and its name under `name` (several make one,
joined by dots). It may also capture `declarator` (C: the name with pointers and parameters around it), `owner` (Go: the receiver), `tail` (a
node after the definition that belongs to it) and `lead` (what belongs to a definition if it stands right above it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: All kinds of definitions. `section` is a part of a text that no one calls: a key, a table, a rule, a target, a block.
KINDS: Final = frozenset(
    ("function", "method", "class", "struct", "interface", "trait", "impl", "enum", "module", "type", "macro", "constant",
     "heading", "section")
)  # fmt: skip
#: A function right inside one of these is a method.
CLASSES: Final = frozenset(("class", "struct", "interface", "trait", "impl", "enum"))


@dataclass(frozen=True)
class Grammar:
    """How one language is read.

    Parameters
    ----------
    parsers
        The names of its parsers. Another than the first is tried where the first finds errors.
    query
        Of the definitions.
    comments_above
        Whether comments right above a definition belong to it; in Python they do not, docstrings do.
    joined
        Whether neighbours of one name are one definition: the equations of a Haskell function.
    """

    parsers: tuple[str, ...]
    query: str
    comments_above: bool = True
    joined: bool = False


_COMMENT: Final = "(comment) @lead"
_COMMENTS: Final = "(line_comment) @lead (block_comment) @lead"

_PYTHON = """
(decorated_definition definition: (function_definition name: (_) @name)) @function
(decorated_definition definition: (class_definition name: (_) @name)) @class
"""
_JAVASCRIPT = """
(export_statement declaration: (class_declaration name: (_) @name)) @class
(variable_declarator name: (identifier) @name value: [(arrow_function) (function_expression) (generator_function)]) @function
(assignment_expression
  left: [(identifier) (member_expression)] @name right: [(arrow_function) (function_expression) (generator_function)]) @function
(pair key: (property_identifier) @name value: [(arrow_function) (function_expression)]) @function
(decorator) @lead
"""
_JAVASCRIPT_FIELD = "(field_definition property: (_) @name value: [(arrow_function) (function_expression)]) @function"
_TYPESCRIPT_FIELD = "(public_field_definition name: (_) @name value: [(arrow_function) (function_expression)]) @function"
_GO = """
(method_declaration receiver: (_) @owner name: (_) @name) @method
(type_spec name: (_) @name) @type
(type_spec name: (_) @name type: (struct_type)) @struct
(type_spec name: (_) @name type: (interface_type)) @interface
"""
_RUST = """
(mod_item name: (_) @name body: (_)) @module
(impl_item type: (_) @name) @impl
(attribute_item) @lead
"""
_C = """
(function_definition declarator: (_) @declarator) @function
(struct_specifier name: (_) @name body: (_)) @struct
(union_specifier name: (_) @name body: (_)) @struct
(enum_specifier name: (_) @name body: (_)) @enum
(type_definition declarator: (_) @name) @type
(type_definition type: (struct_specifier body: (_)) declarator: (_) @name) @struct
(type_definition type: (union_specifier body: (_)) declarator: (_) @name) @struct
(type_definition type: (enum_specifier body: (_)) declarator: (_) @name) @enum
"""
_CPP = """
(class_specifier name: (_) @name body: (_)) @class
(template_declaration (class_specifier name: (_) @name body: (_))) @class
(template_declaration (struct_specifier name: (_) @name body: (_))) @struct
(template_declaration (function_definition declarator: (_) @declarator)) @function
"""
_OBJECTIVE_C = """
(function_definition declarator: (_) @declarator) @function
(class_interface . (identifier) @name) @interface
(class_implementation . (identifier) @name) @class
(protocol_declaration . (identifier) @name) @interface
(method_definition . (method_type) . (identifier) @name) @method
"""
_KOTLIN = """
(class_declaration (type_identifier) @name) @class
(class_declaration "interface" (type_identifier) @name) @interface
(class_declaration "enum" (type_identifier) @name) @enum
(object_declaration (type_identifier) @name) @class
(function_declaration (simple_identifier) @name) @function
(type_alias (type_identifier) @name) @type
"""
_SWIFT = """
(class_declaration name: (_) @name) @class
(class_declaration "struct" name: (_) @name) @struct
(class_declaration "enum" name: (_) @name) @enum
(class_declaration "extension" name: (_) @name) @impl
(function_declaration name: (simple_identifier) @name) @function
(protocol_function_declaration name: (simple_identifier) @name) @function
(init_declaration "init" @name) @function
(typealias_declaration name: (type_identifier) @name) @type
(multiline_comment) @lead
"""
_LUA = """
(assignment_statement (variable_list . name: (_) @name) (expression_list . value: (function_definition))) @function
(field name: (identifier) @name value: (function_definition)) @function
"""
_HASKELL = """
(declarations (signature name: (_) @name) @function)
(declarations (bind name: (_) @name) @function)
(haddock) @lead
"""
_ELIXIR = """
((call target: (identifier) @word (arguments . (alias) @name)) @module (#any-of? @word "defmodule" "defimpl"))
((call target: (identifier) @word (arguments . (alias) @name)) @interface (#eq? @word "defprotocol"))
((call target: (identifier) @word (arguments . [(identifier) @name (call target: (identifier) @name)
  (binary_operator left: (call target: (identifier) @name))])) @function (#any-of? @word "def" "defp"))
((call target: (identifier) @word (arguments . [(identifier) @name (call target: (identifier) @name)
  (binary_operator left: (call target: (identifier) @name))])) @macro (#any-of? @word "defmacro" "defmacrop"))
(unary_operator) @lead
"""
_JULIA = """
(function_definition (signature (call_expression . (_) @name))) @function
(function_definition (signature (where_expression (call_expression . (_) @name)))) @function
(function_definition (signature (typed_expression . (call_expression . (_) @name)))) @function
(assignment . (call_expression . (_) @name)) @function
(macro_definition (signature (call_expression . (_) @name))) @macro
(struct_definition (type_head (_) @name)) @struct
(abstract_definition (type_head (_) @name)) @type
(source_file (string_literal) @lead)
(block (string_literal) @lead)
"""
_ZIG = """
(Decl (FnProto function: (_) @name)) @function
(Decl (VarDecl variable_type_function: (_) @name (ErrorUnionExpr (SuffixExpr (ContainerDecl))))) @struct
(TestDecl (STRINGLITERALSINGLE) @name) @function
(doc_comment) @lead
(line_comment) @lead
"""
_OCAML = """
(module_definition (module_binding (module_name) @name)) @module
(module_type_definition (module_type_name) @name) @interface
(class_binding (class_name) @name) @class
(method_definition (method_name) @name) @method
"""
_OCAML_BODY = """
(compilation_unit (value_definition (let_binding pattern: (value_name) @name) @constant))
(structure (value_definition (let_binding pattern: (value_name) @name) @constant))
(let_binding pattern: (value_name) @name (parameter)) @function
"""
_OCAML_INTERFACE = "(value_specification (value_name) @name) @function"
_DART = """
(mixin_declaration (identifier) @name) @class
((function_signature name: (_) @name) @function . (function_body) @tail)
((method_signature (function_signature name: (_) @name)) @method . (function_body) @tail)
((method_signature (getter_signature name: (_) @name)) @method . (function_body) @tail)
((method_signature (setter_signature name: (_) @name)) @method . (function_body) @tail)
((method_signature (constructor_signature name: (_) @name)) @method . (function_body) @tail)
(documentation_comment) @lead
(annotation) @lead
"""
_SQL = """
(create_table (object_reference) @name) @type
(create_view . (keyword_create) (object_reference) @name) @type
(create_type (object_reference) @name) @type
(create_function (object_reference) @name) @function
(create_trigger (keyword_trigger) . (object_reference) @name) @function
(marginalia) @lead
"""
_PROTOBUF = """
(message (message_name) @name) @struct
(enum (enum_name) @name) @enum
(service (service_name) @name) @interface
(rpc (rpc_name) @name) @function
"""
_CMAKE = """
(function_def (function_command (argument_list . (argument) @name))) @function
(macro_def (macro_command (argument_list . (argument) @name))) @macro
(line_comment) @lead
(bracket_comment) @lead
"""
_GRAPHQL = """
(object_type_definition (name) @name) @struct
(input_object_type_definition (name) @name) @struct
(interface_type_definition (name) @name) @interface
(enum_type_definition (name) @name) @enum
(operation_definition (name) @name) @function
"""
_POWERSHELL = """
(function_statement (function_name) @name) @function
(class_statement . (simple_name) @name) @class
(class_method_definition (simple_name) @name) @method
"""
_MARKUP_ID = """
((element (start_tag (attribute (attribute_name) @word (quoted_attribute_value (attribute_value) @name)))) @section
  (#eq? @word "id"))
"""


def _query(named: str, *others: str) -> str:
    """Write out ``kind: node node; ...`` as queries, and add the other ones."""
    found = []
    for group in named.split(";") if named else ():
        kind, _, nodes = group.partition(":")
        found += [f"({node} name: (_) @name) @{kind.strip()}" for node in nodes.split()]
    return "\n".join([*found, *others])


_SCRIPT: Final = "function: function_declaration generator_function_declaration method_definition; class: class_declaration"
_TYPED: Final = (
    f"{_SCRIPT} abstract_class_declaration; interface: interface_declaration; type: type_alias_declaration; enum: enum_declaration;"
    "module: internal_module module; function: function_signature abstract_method_signature"
)
_FUNCTION: Final = "function: function_definition"

_TYPESCRIPT: Final = _query(_TYPED, _JAVASCRIPT, _TYPESCRIPT_FIELD, _COMMENT)
_C_QUERY: Final = _query("macro: preproc_function_def", _C, _COMMENT)
_CPP_QUERY: Final = _query(
    "macro: preproc_function_def; module: namespace_definition; type: alias_declaration concept_definition", _C, _CPP, _COMMENT
)

#: By the names of `rules.language_of`. `c` with a second parser: headers of C++ are called ``.h`` too.
#: Perl, YAML and Terraform are missing on purpose: of tree-sitter-language-pack 0.13 Perl's scanner never returns from ``r#``,
#: YAML's crashes over damaged text, and Terraform's takes minutes over some. Nothing can stop a scanner; line patterns read these.
GRAMMARS: Final = {
    "python": Grammar(("python",), _query(f"{_FUNCTION}; class: class_definition", _PYTHON, _COMMENT), comments_above=False),
    "starlark": Grammar(("starlark",), _query(_FUNCTION, _COMMENT), comments_above=False),
    "javascript": Grammar(("javascript",), _query(_SCRIPT, _JAVASCRIPT, _JAVASCRIPT_FIELD, _COMMENT)),
    "typescript": Grammar(("typescript",), _TYPESCRIPT),
    "tsx": Grammar(("tsx",), _TYPESCRIPT),
    "go": Grammar(("go",), _query("function: function_declaration; type: type_alias", _GO, _COMMENT)),
    "rust": Grammar(("rust",), _query(
        "function: function_item function_signature_item; struct: struct_item union_item; enum: enum_item; trait: trait_item;"
        "macro: macro_definition; constant: const_item static_item; type: type_item", _RUST, _COMMENTS,
    )),
    "java": Grammar(("java",), _query(
        "class: class_declaration record_declaration; interface: interface_declaration annotation_type_declaration;"
        "enum: enum_declaration; function: method_declaration constructor_declaration compact_constructor_declaration", _COMMENTS,
    )),
    "c": Grammar(("c", "cpp"), _C_QUERY),
    "cpp": Grammar(("cpp",), _CPP_QUERY),
    "cuda": Grammar(("cuda",), _CPP_QUERY),
    "glsl": Grammar(("glsl",), _C_QUERY),
    "hlsl": Grammar(("hlsl",), _CPP_QUERY),
    "objective-c": Grammar(("objc",), _query("macro: preproc_function_def", _OBJECTIVE_C, _COMMENT)),
    "csharp": Grammar(("csharp",), _query(
        "module: namespace_declaration; class: class_declaration record_declaration; interface: interface_declaration;"
        "struct: struct_declaration; enum: enum_declaration; type: delegate_declaration;"
        "function: method_declaration constructor_declaration destructor_declaration local_function_statement", _COMMENT,
    )),
    "ruby": Grammar(("ruby",), _query("module: module; class: class; function: method singleton_method", _COMMENT)),
    "php": Grammar(("php",), _query(
        f"{_FUNCTION} method_declaration; class: class_declaration; interface: interface_declaration; trait: trait_declaration;"
        "enum: enum_declaration", "(namespace_definition name: (_) @name body: (_)) @module", _COMMENT,
    )),
    "shell": Grammar(("bash",), _query(_FUNCTION, _COMMENT)),
    "kotlin": Grammar(("kotlin",), _query("", _KOTLIN, "(line_comment) @lead (multiline_comment) @lead")),
    "scala": Grammar(("scala",), _query(
        f"{_FUNCTION} function_declaration; class: class_definition object_definition; trait: trait_definition;"
        "enum: enum_definition; type: type_definition", "(comment) @lead (block_comment) @lead",
    )),
    "swift": Grammar(("swift",), _query("interface: protocol_declaration", _SWIFT, _COMMENT)),
    "lua": Grammar(("lua",), _query("function: function_declaration", _LUA, _COMMENT)),
    "haskell": Grammar(("haskell",), _query(
        "function: function; type: data_type newtype type_synomym; interface: class; impl: instance", _HASKELL, _COMMENT,
    ), joined=True),
    "elixir": Grammar(("elixir",), _query("", _ELIXIR, _COMMENT), joined=True),
    "erlang": Grammar(("erlang",), _query(
        "struct: record_decl", "(fun_decl clause: (function_clause name: (_) @name)) @function", _COMMENT,
    ), joined=True),
    "julia": Grammar(("julia",), _query("module: module_definition", _JULIA, "(line_comment) @lead (block_comment) @lead")),
    "r": Grammar(("r",), _query("", "(binary_operator lhs: (_) @name rhs: (function_definition)) @function", _COMMENT)),
    "zig": Grammar(("zig",), _query("", _ZIG)),
    "ocaml": Grammar(("ocaml", "ocaml_interface"), _query("type: type_binding", _OCAML, _OCAML_BODY, _COMMENT)),
    "dart": Grammar(("dart",), _query(
        "class: class_definition; enum: enum_declaration; impl: extension_declaration", _DART, _COMMENT,
    )),
    "sql": Grammar(("sql",), _query("", _SQL, _COMMENT)),
    "solidity": Grammar(("solidity",), _query(
        f"{_FUNCTION} modifier_definition; class: contract_declaration; interface: interface_declaration;"
        "module: library_declaration; struct: struct_declaration; enum: enum_declaration", '(constructor_definition "constructor" @name) @function', _COMMENT,
    )),
    "protobuf": Grammar(("proto",), _query("", _PROTOBUF, _COMMENT)),
    "graphql": Grammar(("graphql",), _query("", _GRAPHQL, _COMMENT)),
    "powershell": Grammar(("powershell",), _query("", _POWERSHELL, _COMMENT)),
    "css": Grammar(("css",), _query(
        "", "(rule_set (selectors) @name) @section (keyframes_statement (keyframes_name) @name) @section", _COMMENT,
    )),
    "scss": Grammar(("scss",), _query(
        "function: mixin_statement function_statement", "(rule_set (selectors) @name) @section", _COMMENT,
    )),
    "html": Grammar(("html",), _query("", _MARKUP_ID, _COMMENT)),
    "toml": Grammar(("toml",), _query("", "(table . (_) @name) @section (table_array_element . (_) @name) @section", _COMMENT)),
    "json": Grammar(("json",), _query("", "(document (object (pair key: (_) @name) @section))", _COMMENT)),
    "make": Grammar(("make",), _query("macro: define_directive", "(rule (targets) @name) @section", _COMMENT)),
    "cmake": Grammar(("cmake",), _query("", _CMAKE)),
}  # fmt: skip
#: What a second parser reads instead.
QUERIES: Final = {"cpp": _CPP_QUERY, "ocaml_interface": _query("type: type_binding", _OCAML, _OCAML_INTERFACE, _COMMENT)}

"""What a file's name says: its language, and whether it is a lock file, vendored or generated. Pure."""

from __future__ import annotations

import re
from typing import Final

#: Folders that hold other people's code. Counted once each as `vendored`, never walked.
VENDORED: Final = frozenset(
    ("node_modules", "bower_components", "jspm_packages", "vendor", "third_party", "thirdparty", "third-party", "3rdparty",
     "site-packages", "dist-packages", "__pypackages__", "Pods", "Carthage")
)  # fmt: skip
#: The machinery of version control: neither text of the tree nor a skip worth counting.
MACHINERY: Final = frozenset((".git", ".hg", ".svn", ".jj"))

LOCKFILES: Final = frozenset(
    ("package-lock.json", "npm-shrinkwrap.json", "yarn.lock", "pnpm-lock.yaml", "bun.lock", "bun.lockb", "deno.lock", "poetry.lock",
     "pipfile.lock", "pdm.lock", "uv.lock", "pixi.lock", "conda-lock.yml", "cargo.lock", "gemfile.lock", "composer.lock", "go.sum",
     "go.work.sum", "mix.lock", "pubspec.lock", "podfile.lock", "packages.lock.json", "flake.lock", "gradle.lockfile",
     "package.resolved", "cartfile.resolved", ".terraform.lock.hcl")
)  # fmt: skip

_MINIFIED: Final = re.compile(r"[.\-_]min\.(js|mjs|cjs|css|html|svg)$|\.(js|css|mjs)\.map$", re.IGNORECASE)
_GENERATED: Final = re.compile(
    r"_pb2(_grpc)?\.pyi?$|\.pb\.(go|cc|h|rs)$|\.(designer|g|g\.i)\.cs$|\.(freezed|g)\.dart$|_generated\.\w+$|\.generated\.\w+$",
    re.IGNORECASE,
)

_EXTENSIONS: Final = """
python: py pyi pyw pyx pxd    javascript: js mjs cjs jsx    typescript: ts mts cts    tsx: tsx    rust: rs    go: go    java: java
kotlin: kt kts    scala: scala sc    c: c h    cpp: cc cpp cxx c++ hh hpp hxx h++ inl ipp    cuda: cu cuh    csharp: cs
fsharp: fs fsx fsi    swift: swift    objective-c: m mm    ruby: rb rake gemspec    php: php phtml    perl: pl pm t
lua: lua    r: r    julia: jl    zig: zig    nim: nim    d: d    dart: dart    elixir: ex exs    erlang: erl hrl
haskell: hs lhs    ocaml: ml mli    clojure: clj cljs cljc edn    lisp: lisp lsp cl el    scheme: scm ss rkt
shell: sh bash zsh ksh fish    powershell: ps1 psm1 psd1    batch: bat cmd    sql: sql    html: html htm xhtml    css: css
scss: scss sass    less: less    vue: vue    svelte: svelte    xml: xml xsd xsl xslt svg    json: json jsonc json5
jsonl: jsonl ndjson    yaml: yaml yml    toml: toml    ini: ini cfg conf properties    markdown: md markdown mdx
restructuredtext: rst    asciidoc: adoc asciidoc    latex: tex sty cls bib    text: txt text    csv: csv tsv
protobuf: proto    thrift: thrift    graphql: graphql gql    terraform: tf tfvars hcl    nix: nix    cmake: cmake
make: mk mak    dockerfile: dockerfile    groovy: groovy gradle    assembly: s asm    fortran: f f90 f95 f03 f08 for
pascal: pas pp    ada: adb ads    verilog: v vh    systemverilog: sv svh    vhdl: vhd vhdl    glsl: glsl vert frag comp
hlsl: hlsl    wgsl: wgsl    metal: metal    solidity: sol    vim: vim    diff: diff patch    jinja: j2 jinja jinja2
tcl: tcl    awk: awk
"""
_NAMES: Final = {
    "dockerfile": "dockerfile", "containerfile": "dockerfile", "makefile": "make", "gnumakefile": "make",
    "cmakelists.txt": "cmake", "rakefile": "ruby", "gemfile": "ruby", "vagrantfile": "ruby", "jenkinsfile": "groovy",
    "build": "starlark", "build.bazel": "starlark", "workspace": "starlark", "justfile": "just", "go.mod": "go-module",
    ".bashrc": "shell", ".profile": "shell", ".zshrc": "shell", ".vimrc": "vim", "readme": "text", "license": "text",
    "copying": "text", "authors": "text", "changelog": "text", "notice": "text",
}  # fmt: skip
_SHEBANGS: Final = {
    "python": "python", "pypy": "python", "sh": "shell", "bash": "shell", "zsh": "shell", "dash": "shell", "ksh": "shell",
    "fish": "shell", "node": "javascript", "deno": "typescript", "bun": "typescript", "ruby": "ruby", "perl": "perl",
    "php": "php", "lua": "lua", "rscript": "r", "julia": "julia", "awk": "awk", "gawk": "awk", "tclsh": "tcl",
    "pwsh": "powershell", "make": "make",
}  # fmt: skip


def _by_extension() -> dict[str, str]:
    found: dict[str, str] = {}
    for group in re.split(r"\s{2,}|\n", _EXTENSIONS.strip()):
        language, _, extensions = group.partition(":")
        found.update(dict.fromkeys(extensions.split(), language))
    return found


_LANGUAGE_OF: Final = _by_extension()


#: What the stem of every name that `_MINIFIED` or `_GENERATED` matches ends with. It spares nearly all names the two patterns.
_MARKED_STEMS: Final = (
    "min", "js", "css", "mjs", "_pb2", "_pb2_grpc", ".pb", ".designer", ".g", ".g.i", ".freezed", "_generated", ".generated",
)  # fmt: skip


def skip_by_name(name: str) -> str | None:
    """Return the skip code that a file's own name earns it (``lockfile``, ``minified``, ``generated``), else ``None``."""
    lower = name.lower()
    if lower in LOCKFILES:
        return "lockfile"
    if not lower.rpartition(".")[0].endswith(_MARKED_STEMS):
        return None
    if _MINIFIED.search(name):
        return "minified"
    return "generated" if _GENERATED.search(name) else None


def language_of(path: str, text: str) -> str:
    """Return a file's language in lower case: by its name, else extension, else first line (``#!``), else ``text``."""
    name = path.rpartition("/")[2].lower()
    stem, dot, extension = name.rpartition(".")
    if name in _NAMES:
        return _NAMES[name]
    if stem and dot and extension in _LANGUAGE_OF:
        return _LANGUAGE_OF[extension]
    return _by_shebang(text) or _NAMES.get(stem or name, "text")


def _by_shebang(text: str) -> str | None:
    if not text.startswith("#!"):
        return None
    words = text[2 : text.find("\n") if "\n" in text else len(text)].split()
    if words and words[0].endswith("/env"):
        words = [w for w in words[1:] if not w.startswith("-") and "=" not in w]
    program = words[0].rpartition("/")[2].lower() if words else ""
    return _SHEBANGS.get(re.sub(r"[\d.]+$", "", program))

"""A little of every language that has a grammar, and what is defined there: kind, name, first and last line."""

from __future__ import annotations

import textwrap

Expected = list[tuple[str, str, int, int]]


def _written(text: str, found: str) -> tuple[str, Expected]:
    rows = (row.split() for row in textwrap.dedent(found).strip().split("\n"))
    return textwrap.dedent(text).lstrip("\n"), [(r[0], " ".join(r[1:-2]), int(r[-2]), int(r[-1])) for r in rows]


SAMPLES: dict[str, tuple[str, Expected]] = {
    "python": _written(
        """
        # not its own
        @cached
        def f(x):
            class A:
                async def g(self): pass
            return A
            # the end
        X = 1
        """,
        "function f 2 6 \n class f.A 4 5 \n method f.A.g 5 5",
    ),
    "starlark": _written("def f(x):\n    return x\n", "function f 1 2"),
    "javascript": _written(
        """
        /** Goes. */
        export default function go() {
        }
        const f = async (x) => {
        }
        class A extends B {
          run(x) {
          }
          h = () => 1
        }
        module.exports.made = function () {
        }
        A.prototype.late = function* () {}
        A.prototype.last = () => {
        }
        """,
        "function go 1 3 \n function f 4 5 \n class A 6 10 \n method A.run 7 8 \n method A.h 9 9 \n function made 11 12 \n"
        "function A.late 13 13 \n function A.last 14 15",
    ),
    "typescript": _written(
        """
        export interface I {
          a(): void
        }
        type T = string
        enum E {
          A,
        }
        @dec()
        export abstract class C {
          // runs
          private run(x: T): void {
          }
          abstract z(): void
        }
        namespace N {
          export function q() {
          }
        }
        """,
        "interface I 1 3 \n type T 4 4 \n enum E 5 7 \n class C 8 14 \n method C.run 10 12 \n method C.z 13 13 \n module N 15 18 \n"
        "function N.q 16 17",
    ),
    "tsx": _written(
        """
        const Card = (p: P) => (
          <div/>
        )
        export default function App(): JSX.Element {
          return <p/>
        }
        """,
        "function Card 1 3 \n function App 4 6",
    ),
    "go": _written(
        """
        package a

        // Run runs.
        func (s *Server[T]) Run(x int) error {
        \treturn nil
        }
        func main() {
        }
        type T struct {
        }
        type I interface {
        }
        type (
        \tA int
        \tB = string
        )
        """,
        "method Server.Run 3 6 \n function main 7 8 \n struct T 9 10 \n interface I 11 12 \n type A 14 14 \n type B 15 15",
    ),
    "rust": _written(
        """
        /// A point.
        #[derive(Debug)]
        pub struct S {
        }
        enum E { A }
        trait T {
            fn d(&self);
        }
        impl<X> Display for Thing<X> {
            fn fmt(&self) {
            }
        }
        mod m {
            pub(crate) async fn run() {}
        }
        macro_rules! mac {
            () => {};
        }
        const C: i32 = 1;
        type A = i32;
        """,
        "struct S 1 4 \n enum E 5 5 \n trait T 6 8 \n method T.d 7 7 \n impl Thing 9 12 \n method Thing.fmt 10 11 \n module m 13 15 \n"
        "function m.run 14 14 \n macro mac 16 18 \n constant C 19 19 \n type A 20 20",
    ),
    "java": _written(
        """
        package a;
        /** Doc. */
        @Ann
        public class A<T> {
            A() {
            }
            @Override
            private static List<String> all(int x) {
                return null;
            }
        }
        interface I { void m(); }
        enum E { X }
        record R(int a) { }
        """,
        "class A 2 11 \n method A.A 5 6 \n method A.all 7 10 \n interface I 12 12 \n method I.m 12 12 \n enum E 13 13 \n class R 14 14",
    ),
    "c": _written(
        """
        #define TWICE(x) ((x) * 2)
        /* adds */
        static int
        add(int a, int b)
        {
            return a + b;
        }
        char *name(void) {
        }
        struct point {
            int x;
        };
        typedef struct {
            int y;
        } Named;
        enum e { A };
        int later(void);
        """,
        "macro TWICE 1 1 \n function add 2 7 \n function name 8 9 \n struct point 10 12 \n struct Named 13 15 \n enum e 16 16",
    ),
    "cpp": _written(
        """
        namespace a::b {
        template <class T>
        class Pool : public Base {
          public:
            ~Pool() {
            }
            T *get() const {
            }
        };
        }
        void Server::run(int x) {
        }
        bool operator==(A a, A b) {
        }
        template <class T>
        int many(T x) {
        }
        using Number = int;
        """,
        "module a.b 1 10 \n class a.b.Pool 2 9 \n method a.b.Pool.~Pool 5 6 \n method a.b.Pool.get 7 8 \n method Server.run 11 12 \n"
        "function operator== 13 14 \n function many 15 17 \n type Number 18 18",
    ),
    "cuda": _written(
        "template <typename T>\n__global__ void scale(T *x, T a) {\n    x[threadIdx.x] *= a;\n}\n", "function scale 1 4"
    ),
    "glsl": _written("struct S {\n  int a;\n};\nvoid main() {\n}\n", "struct S 1 3 \n function main 4 5"),
    "hlsl": _written("struct S {\n  int a;\n};\nfloat4 main() : SV_Target {\n}\n", "struct S 1 3 \n function main 4 5"),
    "objective-c": _written(
        """
        @interface A : NSObject
        - (void)run:(int)x;
        @end
        @implementation A
        // runs
        - (void)run:(int)x {
        }
        @end
        int add(int a) {
        }
        """,
        "interface A 1 3 \n class A 4 8 \n method A.run 5 7 \n function add 9 10",
    ),
    "csharp": _written(
        """
        namespace A.B
        {
            /// <summary>Doc</summary>
            [Attr]
            public class C<T>
            {
                C() { }
                public async Task<int> M(int x)
                {
                    return 1;
                }
            }
            interface I { }
            struct S { }
            enum E { X }
        }
        """,
        "module A.B 1 16 \n class A.B.C 3 12 \n method A.B.C.C 7 7 \n method A.B.C.M 8 11 \n interface A.B.I 13 13 \n struct A.B.S 14 14 \n"
        "enum A.B.E 15 15",
    ),
    "ruby": _written(
        """
        module M
          # a thing
          class A < B
            def self.make(x)
              new
            end
            def run!
            end
          end
        end
        """,
        "module M 1 10 \n class M.A 2 9 \n method M.A.make 4 6 \n method M.A.run! 7 8",
    ),
    "php": _written(
        """
        <?php
        namespace A;
        /** Doc */
        #[Attr]
        abstract class C extends D {
            public function m() {
            }
        }
        interface I { }
        trait T { }
        function f() {
        }
        """,
        "class C 3 8 \n method C.m 6 7 \n interface I 9 9 \n trait T 10 10 \n function f 11 12",
    ),
    "shell": _written("# builds\nbuild() {\n  echo\n}\nfunction clean {\n  rm x\n}\n", "function build 1 4 \n function clean 5 7"),
    "kotlin": _written(
        """
        package a
        @Ann
        class A(val x: Int) {
            fun m(): Int {
                return 1
            }
            companion object {
                fun c() {
                }
            }
        }
        interface I {
            fun q()
        }
        object O {
        }
        enum class E {
            X
        }
        fun String.ext() = 1
        typealias T = Int
        """,
        "class A 2 11 \n method A.m 4 6 \n method A.c 8 9 \n interface I 12 14 \n method I.q 13 13 \n class O 15 16 \n enum E 17 19 \n"
        "function ext 20 20 \n type T 21 21",
    ),
    "scala": _written(
        """
        // doc
        case class A(x: Int) {
          def m(): Int = {
            1
          }
        }
        object O {
          def f = 2
        }
        trait T
        """,
        "class A 1 6 \n method A.m 3 5 \n class O 7 9 \n method O.f 8 8 \n trait T 10 10",
    ),
    "swift": _written(
        """
        /// Doc
        @objc public class A: B {
            init() {
            }
            func m() {
            }
        }
        struct S {
        }
        enum E {
            case a
        }
        protocol P {
            func q()
        }
        extension A {
            func z() {
            }
        }
        """,
        "class A 1 7 \n method A.init 3 4 \n method A.m 5 6 \n struct S 8 9 \n enum E 10 12 \n interface P 13 15 \n method P.q 14 14 \n"
        "impl A 16 19 \n method A.z 17 18",
    ),
    "lua": _written(
        """
        -- adds
        local function f()
        end
        function M.g()
        end
        function M:h()
        end
        M.y = function()
        end
        """,
        "function f 1 3 \n function M.g 4 5 \n function M.h 6 7 \n function M.y 8 9",
    ),
    "haskell": _written(
        """
        module A where
        -- | Doc
        f :: Int -> Int
        f 0 = 1
        f x = x
        data D = A | B
        class C a where
          m :: a
        instance C Int where
          m = 1
        """,
        "function f 2 5 \n type D 6 6 \n interface C 7 8 \n impl C 9 10",
    ),
    "elixir": _written(
        """
        defmodule A.B do
          @doc "x"
          def f(x) when x > 1 do
            x
          end
          def f(_), do: 2
          defp g, do: 1
          defmacro m(x) do
          end
        end
        """,
        "module A.B 1 10 \n function A.B.f 2 6 \n function A.B.g 7 7 \n macro A.B.m 8 9",
    ),
    "erlang": _written(
        """
        -module(a).
        %% Doc
        f(0) -> 1;
        f(X) -> X.
        -record(r, {a}).
        """,
        "function f 2 4 \n struct r 5 5",
    ),
    "julia": _written(
        """
        module M
        "Doc"
        function f(x::Int)
            x
        end
        g(x) = x + 1
        struct S{T} <: B
            a
        end
        macro m(x)
        end
        end
        """,
        "module M 1 12 \n function M.f 2 5 \n function M.g 6 6 \n struct M.S 7 9 \n macro M.m 10 11",
    ),
    "r": _written("# adds\nadd <- function(x) {\n  x\n}\n", "function add 1 4"),
    "zig": _written(
        """
        /// Doc
        pub fn f(x: u8) void {
        }
        const S = struct {
            fn m() void {
            }
        };
        """,
        "function f 1 3 \n struct S 4 7 \n method S.m 5 6",
    ),
    "ocaml": _written(
        """
        (* adds *)
        let add x =
          x
        let q = 1
        module M = struct
          let rec g y =
            y
        end
        type t = A | B
        """,
        "function add 1 3 \n constant q 4 4 \n module M 5 8 \n function M.g 6 7 \n type t 9 9",
    ),
    "dart": _written(
        """
        /// Doc
        class A extends B {
          int m() {
            return 1;
          }
        }
        enum E { a }
        void top() {
        }
        """,
        "class A 1 6 \n method A.m 3 5 \n enum E 7 7 \n function top 8 9",
    ),
    "sql": _written(
        """
        -- People.
        CREATE TABLE app.people (
          name text
        );
        CREATE VIEW v AS SELECT 1;
        """,
        "type app.people 1 4 \n type v 5 5",
    ),
    "solidity": _written(
        """
        contract C is D {
            function f(uint x) public {
            }
            struct S { uint a; }
        }
        library L { }
        """,
        "class C 1 5 \n method C.f 2 3 \n struct C.S 4 4 \n module L 6 6",
    ),
    "protobuf": _written(
        """
        syntax = "proto3";
        // Doc
        message M {
          enum E { A = 0; }
        }
        service S {
          rpc R(M) returns (M);
        }
        """,
        "struct M 2 5 \n enum M.E 4 4 \n interface S 6 8 \n method S.R 7 7",
    ),
    "graphql": _written("type A {\n  b: C\n}\nenum E {\n  X\n}\n", "struct A 1 3 \n enum E 4 6"),
    "powershell": _written(
        "function Get-A {\n  1\n}\nclass C {\n  [int] M() {\n    return 1\n  }\n}\n", "function Get-A 1 3 \n class C 4 8 \n method C.M 5 7"
    ),
    "css": _written("/* doc */\n.a > b {\n  color: red;\n}\n@keyframes k {\n}\n", "section .a > b 1 4 \n section k 5 6"),
    "scss": _written("@mixin m($a) {\n  b: c;\n}\n.a {\n  color: red;\n}\n", "function m 1 3 \n section .a 4 6"),
    "html": _written('<html>\n<div class="c" id="x">\n<p>a</p>\n</div>\n</html>\n', "section x 2 4"),
    "toml": _written("a = 1\n[b.c]\nd = 1\n\n[[e]]\nf = 2\n", "section b.c 2 3 \n section e 5 6"),
    "json": _written('{\n  "a": 1,\n  "b": {\n    "c": 2\n  }\n}\n', "section a 2 2 \n section b 3 5"),
    "make": _written("X = 1\n# doc\nall: a b\n\techo\ndefine F\nx\nendef\n", "section all 2 4 \n macro F 5 7"),
    "cmake": _written("function(f x)\n  set(a b)\nendfunction()\nmacro(m)\nendmacro()\n", "function f 1 3 \n macro m 4 5"),
}

//! Tests that the documents contain the programs of the examples unchanged, and that the programs
//! run. Needs the VM.

/// Defines two tests of an example. One test runs the example, and the other test checks that the
/// document contains the example unchanged.
macro_rules! example {
    ($name:ident, $file:literal, $text:literal) => {
        mod $name {
            include!(concat!("../../../verbs/examples/", $file));

            #[test]
            fn runs() {
                main().expect(concat!("the program of ", $text));
            }

            #[test]
            fn is_in_the_text() {
                let text = include_str!(concat!("../../../", $text));
                let program = include_str!(concat!("../../../verbs/examples/", $file));
                assert!(text.contains(program.trim_end()));
            }
        }
    };
}

example!(first, "first.rs", "README.md");
example!(each_time, "each_time.rs", "docs/guide/tutorial.md");
example!(looked_up, "looked_up.rs", "docs/guide/tutorial.md");
example!(posted, "posted.rs", "docs/guide/tutorial.md");

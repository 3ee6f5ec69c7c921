//! The README's first program: it is the example, and the example runs. Needs the VM.

mod first {
    include!("../../verbs/examples/first.rs");

    #[test]
    fn the_first_program_runs() {
        main().expect("the README's program");
    }
}

#[test]
fn the_first_program_is_in_the_readme() {
    let readme = include_str!("../../README.md");
    assert!(readme.contains(include_str!("../../verbs/examples/first.rs").trim_end()));
}

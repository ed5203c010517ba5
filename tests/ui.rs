//! Mistakes that have to be compile errors, with a message that says what to do instead.
//!
//! rustc's output changes from one release to the next. `ci/ui` runs this file on the one release that the `.stderr`
//! files were written with; `cargo test` leaves it out (`test = false`). To rewrite the files: `TRYBUILD=overwrite
//! cargo test --all-features --test ui`.

#![cfg(all(feature = "tower", feature = "tokio", feature = "smol"))]

#[test]
fn mistakes_are_compile_errors() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}

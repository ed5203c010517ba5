//! Stacks of typed errors: found, reported, flattened.

use core::error::Error as StdError;
use core::fmt;

use campanile::error::{AsError, Report, find};
use campanile::load_shed::{Error, Overloaded};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outer(Inner);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inner;

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("outer")
    }
}

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("inner")
    }
}

impl StdError for Outer {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

impl StdError for Inner {}

type Stack = Error<Error<Error<Outer>>>;

fn at_the_bottom() -> Stack {
    Error::Service(Error::Service(Error::Service(Outer(Inner))))
}

fn in_the_middle() -> Stack {
    Error::Service(Error::Overloaded(Overloaded::new()))
}

#[test]
fn find_searches_all_levels_and_sources() {
    assert_eq!(find::<Outer>(&at_the_bottom()), Some(&Outer(Inner)));
    assert_eq!(find::<Inner>(&at_the_bottom()), Some(&Inner));
    assert_eq!(find::<Overloaded>(&at_the_bottom()), None);
    assert_eq!(
        find::<Overloaded>(&in_the_middle()),
        Some(&Overloaded::new())
    );
    assert_eq!(find::<Outer>(&in_the_middle()), None);
    assert_eq!(find::<Inner>(&Outer(Inner)), Some(&Inner));
}

#[test]
fn a_report_is_the_innermost_error() {
    let report = Report(at_the_bottom());
    assert_eq!(report.to_string(), "outer");
    assert_eq!(format!("{report:?}"), "Outer(Inner)");
    assert!(report.source().unwrap().is::<Inner>());
    assert_eq!(Report(in_the_middle()).to_string(), "service overloaded");
    assert!(Report(in_the_middle()).source().is_none());
    // A report is an error, so a stack of reports can be searched too.
    assert!(Report(report).as_error().is::<Report<Report<Stack>>>());
}

#[test]
fn a_stack_reads_like_its_innermost_error() {
    assert_eq!(at_the_bottom().to_string(), "outer");
    assert_eq!(in_the_middle().to_string(), "service overloaded");
    assert_eq!(
        in_the_middle().into_service(),
        Some(Error::Overloaded(Overloaded::new()))
    );
    assert_eq!(Stack::Overloaded(Overloaded::new()).into_service(), None);
}

#[cfg(feature = "alloc")]
mod boxed {
    use campanile::BoxError;

    use super::*;

    fn question_mark(error: Stack) -> Result<(), BoxError> {
        Err(error)?
    }

    #[test]
    fn question_mark_flattens_any_stack() {
        let error = question_mark(at_the_bottom()).unwrap_err();
        assert!(error.is::<Outer>());
        assert!(error.source().unwrap().is::<Inner>());
        assert!(
            question_mark(in_the_middle())
                .unwrap_err()
                .is::<Overloaded>()
        );
    }

    #[test]
    fn a_box_inside_is_not_boxed_again() {
        let inside: BoxError = Box::new(Outer(Inner));
        let stack: Error<Error<BoxError>> = Error::Service(Error::Service(inside));
        assert!(BoxError::from(stack).is::<Outer>());
    }
}

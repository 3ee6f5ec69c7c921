//! Runs the tree's own checkpatch on the patches, and compares its remarks with those that are
//! argued here. A new remark and an argument without a remark are both errors.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Place, series};
use crate::cmd;
use crate::error::Error;

/// Remarks of checkpatch that the series deliberately does not follow.
struct Argued {
    /// The number of the patch.
    patch: &'static str,
    /// The name of this kind of remark in checkpatch's output.
    kind: &'static str,
    /// The number of such remarks.
    count: usize,
    /// The reason.
    #[expect(dead_code, reason = "for the reader")]
    why: &'static str,
}

const NO_MAINTAINER: &str =
    "the series has no entry for MAINTAINERS: only a person can promise to maintain the driver";
const NOT_SIGNED: &str =
    "a program cannot certify the origin of a patch: the person who submits it signs off";

const ARGUED: &[Argued] = &[
    argued("0001", "FILE_PATH_CHANGES", 1, NO_MAINTAINER),
    argued("0002", "FILE_PATH_CHANGES", 1, NO_MAINTAINER),
    argued("0003", "FILE_PATH_CHANGES", 1, NO_MAINTAINER),
    argued("0004", "FILE_PATH_CHANGES", 1, NO_MAINTAINER),
    argued("0001", "MISSING_SIGN_OFF", 1, NOT_SIGNED),
    argued("0002", "MISSING_SIGN_OFF", 1, NOT_SIGNED),
    argued("0003", "MISSING_SIGN_OFF", 1, NOT_SIGNED),
    argued("0004", "MISSING_SIGN_OFF", 1, NOT_SIGNED),
    argued(
        "0002",
        "UNCOMMENTED_DEFINITION",
        3,
        "the kernel-doc comment of the structure explains the locks, but checkpatch does not read it",
    ),
];

const fn argued(
    patch: &'static str,
    kind: &'static str,
    count: usize,
    why: &'static str,
) -> Argued {
    Argued {
        patch,
        kind,
        count,
        why,
    }
}

/// Runs checkpatch on the patches in `dir/series`, inside the root. Returns the number of argued
/// remarks.
pub(super) fn check(place: &Place<'_>) -> Result<usize, Error> {
    let mut checkpatch = place.enter("perl");
    checkpatch.arg("/mnt/linux/scripts/checkpatch.pl");
    checkpatch.args([
        "--root=/mnt/linux",
        "--strict",
        "--terse",
        "--show-types",
        "--no-summary",
    ]);
    for patch in series::patches(&place.dir)? {
        checkpatch.arg(Path::new("/mnt/series").join(patch.file_name().unwrap_or_default()));
    }
    let output = cmd::output(&mut checkpatch)?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    judge(&said, ARGUED).map_err(|why| Error::Check(format!("checkpatch --strict:\n{why}")))
}

/// Compares the remarks with the arguments. Returns the number of remarks, or the differences.
fn judge(said: &str, argued: &[Argued]) -> Result<usize, String> {
    let mut found: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for line in said.lines().filter(|line| !line.trim().is_empty()) {
        match remark(line) {
            Some(key) => found.entry(key).or_default().push(line),
            None => wrong.push(line.to_owned()),
        }
    }
    for Argued {
        patch, kind, count, ..
    } in argued
    {
        let lines = found.remove(&(*patch, *kind)).unwrap_or_default();
        if lines.len() != *count {
            wrong.extend(lines.iter().map(|line| (*line).to_owned()));
            wrong.push(format!(
                "patch {patch}: {} remarks of {kind} instead of {count}. Correct the series, or the argument in \
                 xtask/src/intree/style.rs",
                lines.len()
            ));
        }
    }
    wrong.extend(found.into_values().flatten().map(ToOwned::to_owned));
    if wrong.is_empty() {
        return Ok(argued.iter().map(|it| it.count).sum());
    }
    Err(wrong.join("\n"))
}

/// Returns the number of the patch and the kind of a remark. A remark has the form
/// `PATH/NUMBER-SUBJECT:LINE: LEVEL:KIND: TEXT`.
fn remark(line: &str) -> Option<(&str, &str)> {
    let (path, rest) = line.split_once(": ")?;
    let name = path.rsplit('/').next()?;
    let kind = rest.split(':').nth(1)?;
    let is_kind = kind
        .chars()
        .all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit());
    let number = name.split('-').next()?;
    (is_kind && number.chars().all(|c| c.is_ascii_digit())).then_some((number, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "/mnt/series/0002-x.patch:9: CHECK:A_B: text: more\n\
                        /mnt/series/0002-x.patch:11: CHECK:A_B: text\n";

    fn argued(count: usize) -> Argued {
        super::argued("0002", "A_B", count, "")
    }

    #[test]
    fn argued_remarks_are_no_error() {
        assert_eq!(judge(SAID, &[argued(2)]), Ok(2));
        assert_eq!(judge("\n", &[]), Ok(0));
    }

    #[test]
    fn a_new_remark_is_an_error() {
        assert!(judge(SAID, &[]).unwrap_err().contains("0002-x.patch:9"));
        assert!(
            judge(SAID, &[argued(1)])
                .unwrap_err()
                .contains("2 remarks of A_B")
        );
        let other = "/mnt/series/0001-x.patch:9: CHECK:A_B: text\n";
        assert!(
            judge(&(SAID.to_owned() + other), &[argued(2)])
                .unwrap_err()
                .contains("0001-x.patch")
        );
    }

    #[test]
    fn an_argument_without_its_remark_is_an_error() {
        assert!(
            judge("", &[argued(2)])
                .unwrap_err()
                .contains("0 remarks of A_B")
        );
    }

    #[test]
    fn what_is_no_remark_is_an_error() {
        assert!(judge("Can't open perl script\n", &[]).is_err());
    }
}

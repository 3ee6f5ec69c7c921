//! Reads the output of a kselftest, which is in the Test Anything Protocol.

/// Returns the number of tests that passed, if exactly the tests in `skipped` were skipped and all
/// others passed. Returns the reason otherwise.
pub(super) fn judge(said: &str, skipped: &[&str]) -> Result<usize, String> {
    let mut lines = said.lines().map(str::trim_end);
    if !lines.any(|line| line.starts_with("TAP version ")) {
        return Err("there is no line `TAP version`".to_owned());
    }
    let mut plan = None;
    let mut results = 0;
    let mut wrong = Vec::new();
    let mut to_skip = skipped.to_vec();
    for line in lines {
        if let Some(count) = line.strip_prefix("1..") {
            let count = count.trim().parse::<usize>().ok();
            if plan.is_some() || count.is_none() {
                return Err(format!("the plan is wrong: {line}"));
            }
            plan = count;
            continue;
        }
        let (passed, result) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(result), _) => (true, result),
            (_, Some(result)) => (false, result),
            _ => continue,
        };
        results += 1;
        let mut words = result.split(' ');
        if words.next().and_then(|it| it.parse().ok()) != Some(results) {
            return Err(format!("a test is out of order: {line}"));
        }
        let test = words.next().unwrap_or_default();
        if passed && line.contains("# SKIP") && to_skip.contains(&test) {
            to_skip.retain(|it| *it != test);
        } else if !passed || line.contains("# SKIP") {
            wrong.push(line.to_owned());
        }
    }
    let Some(plan) = plan else {
        return Err("there is no plan (1..N)".to_owned());
    };
    if plan == 0 || results != plan {
        wrong.push(format!("{results} of {plan} planned tests ran"));
    }
    wrong.extend(to_skip.iter().map(|test| format!("{test} was not skipped")));
    if wrong.is_empty() {
        return Ok(plan - skipped.len());
    }
    Err(wrong.join("\n"))
}

/// Returns the output without the lines of tests that passed.
pub(super) fn without_successes(said: &str) -> String {
    let passed = |line: &str| {
        let mark = line.trim_start_matches(['#', ' ']);
        line.starts_with("ok ") || mark.starts_with("RUN ") || mark.starts_with("OK ")
    };
    let lines = said.lines().map(str::trim_end);
    let lines = lines.filter(|line| !passed(line) || line.contains("# SKIP"));
    lines
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "noise\r\nTAP version 13\r\n1..2\r\n#  RUN  a\r\nok 1 a\r\nok 2 b\r\n# Totals: pass:2\r\n";

    #[test]
    fn tests_that_all_passed_are_counted() {
        assert_eq!(judge(GOOD, &[]), Ok(2));
    }

    #[test]
    fn a_failure_a_skip_and_a_wrong_plan_are_noticed() {
        for (from, to, why) in [
            ("ok 2 b", "not ok 2 b", "not ok 2 b"),
            ("ok 2 b", "ok 2 b # SKIP none", "# SKIP none"),
            ("1..2", "1..3", "2 of 3"),
            ("1..2", "1..x", "1..x"),
            ("1..2", "#", "no plan"),
            ("ok 1 a\r\n", "", "out of order: ok 2 b"),
            ("ok 2 b\r\n", "", "1 of 2"),
            ("TAP version 13", "", "TAP version"),
        ] {
            let said = GOOD.replace(from, to);
            let error = judge(&said, &[]).unwrap_err();
            assert!(error.contains(why), "{said}: {error}");
        }
    }

    #[test]
    fn a_test_may_be_skipped_if_it_must_be() {
        let said = GOOD.replace("ok 2 b", "ok 2 b # SKIP none");
        assert_eq!(judge(&said, &["b"]), Ok(1));
        assert_eq!(judge(GOOD, &["b"]), Err("b was not skipped".to_owned()));
        assert!(judge(&said, &["a"]).unwrap_err().contains("ok 2 b"));
    }

    #[test]
    fn a_report_of_a_failure_has_no_lines_of_tests_that_passed() {
        let said = "1..2\n#  RUN           a ...\n# x.c:9:Expected 1\n#            OK  a\nok 1 a\nok 2 b # SKIP c\n";
        assert_eq!(
            without_successes(said),
            "  1..2\n  # x.c:9:Expected 1\n  ok 2 b # SKIP c"
        );
    }
}

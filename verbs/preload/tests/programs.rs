//! Runs unmodified programs of Debian on a real device, with the shim and without. The programs'
//! results must be the same.
//!
//! Each program runs as server and client on this machine. With `REGCACHE_PROGRAMS=all` the tests
//! run with all settings. Each then prints its row of the table in docs/guide/preload.md.
#![expect(clippy::unwrap_used, reason = "a test")]

mod preload;

use std::fs;
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use preload::{Ran, Summary, bounded, run, under_shim};
use regcache_test_support::SecondDevice;

/// A program, and the arguments with which it runs briefly.
struct Program {
    name: &'static str,
    both: &'static [&'static str],
    server: &'static [&'static str],
    client: &'static [&'static str],
    /// The settings of the shim with which the program runs.
    with: &'static [How],
    /// Extracts the part of the output that shows how much the program did, and not how fast.
    verdict: fn(&str) -> Vec<String>,
}

/// Returns the rows of perftest's table: bytes and iterations.
fn rows(stdout: &str) -> Vec<String> {
    let words = stdout
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows =
        words.filter(|words| words.len() > 3 && words.iter().all(|it| it.parse::<f64>().is_ok()));
    rows.map(|row| row[..2].join(" ")).collect()
}

/// Returns how many bytes and iterations a ping-pong exchanged.
fn totals(stdout: &str) -> Vec<String> {
    let lines = stdout
        .lines()
        .filter(|line| line.contains(" bytes in ") || line.contains(" iters in "));
    lines
        .map(|line| line.split(" in ").next().unwrap_or_default().to_owned())
        .collect()
}

/// Returns the data that rping received back.
fn echoes(stdout: &str) -> Vec<String> {
    stdout
        .lines()
        .filter(|line| line.contains("ping data"))
        .map(str::to_owned)
        .collect()
}

/// Returns the status with which an example of rdma_cm ended.
fn statuses(stdout: &str) -> Vec<String> {
    let lines = stdout.lines().filter(|line| line.contains("return status"));
    lines.map(str::to_owned).collect()
}

/// Returns the sizes and counts of rstream's table. The bytes were verified.
fn streams(stdout: &str) -> Vec<String> {
    let lines = stdout.lines().filter(|line| line.starts_with("custom"));
    let words = lines.map(|line| line.split_whitespace().take(5).collect::<Vec<_>>());
    words.map(|words| words.join(" ")).collect()
}

const STREAM: &[&str] = &[
    "-p", "18600", "-S", "16384", "-C", "20", "-I", "4", "-T", "v",
];

/// The arguments of perftest, for the IPv4 address of lo.
const PERFTEST: &[&str] = &[
    "-d", "rxe0", "-x", "1", "-n", "20", "-s", "65536", "-F", "-p", "18600",
];
const PINGPONG: &[&str] = &["-d", "rxe0", "-g", "1", "-n", "20", "-p", "18600"];
const HERE: &[&str] = &["127.0.0.1"];

const PROGRAMS: &[Program] = &[
    Program {
        name: "ib_write_bw",
        both: PERFTEST,
        server: &[],
        client: HERE,
        with: &[How::Keep],
        verdict: rows,
    },
    Program {
        name: "ib_read_lat",
        both: PERFTEST,
        server: &[],
        client: HERE,
        with: &[How::Shim],
        verdict: rows,
    },
    Program {
        name: "ib_send_bw",
        both: PERFTEST,
        server: &[],
        client: HERE,
        with: &[How::Shim],
        verdict: rows,
    },
    Program {
        name: "rping",
        both: &[
            "-a",
            SecondDevice::ADDRESS,
            "-p",
            "18600",
            "-v",
            "-V",
            "-C",
            "10",
            "-S",
            "1000",
        ],
        server: &["-s"],
        client: &["-c"],
        with: &[How::Shim, How::Keep],
        verdict: echoes,
    },
    Program {
        name: "ibv_rc_pingpong",
        both: PINGPONG,
        server: &["-c"],
        client: &["-c", "127.0.0.1"],
        with: &[How::Shim],
        verdict: totals,
    },
    Program {
        name: "ibv_ud_pingpong",
        both: PINGPONG,
        server: &[],
        client: HERE,
        with: &[How::Shim],
        verdict: totals,
    },
    Program {
        name: "ib_read_bw",
        both: PERFTEST,
        server: &[],
        client: HERE,
        with: &[How::Keep],
        verdict: rows,
    },
    Program {
        name: "ib_atomic_bw",
        both: &["-d", "rxe0", "-x", "1", "-n", "20", "-F", "-p", "18600"],
        server: &[],
        client: HERE,
        with: &[How::Keep],
        verdict: rows,
    },
    Program {
        name: "ib_send_lat",
        both: &["-R", "-n", "20", "-F", "-s", "4096", "-p", "18600"],
        server: &[],
        client: &[SecondDevice::ADDRESS],
        with: &[How::Shim],
        verdict: rows,
    },
    Program {
        name: "ibv_srq_pingpong",
        both: &[
            "-d", "rxe0", "-g", "1", "-n", "20", "-q", "3", "-c", "-p", "18600",
        ],
        server: &[],
        client: HERE,
        with: &[How::Shim],
        verdict: totals,
    },
    Program {
        name: "ibv_uc_pingpong",
        both: &["-d", "rxe0", "-g", "1", "-n", "20", "-c", "-p", "18600"],
        server: &[],
        client: HERE,
        with: &[How::Shim],
        verdict: totals,
    },
    Program {
        name: "ucmatose",
        both: &["-C", "5", "-S", "1000"],
        server: &["-b", SecondDevice::ADDRESS],
        client: &["-s", SecondDevice::ADDRESS],
        with: &[How::Shim],
        verdict: statuses,
    },
    Program {
        name: "udaddy",
        both: &["-C", "5", "-S", "1000"],
        server: &[],
        client: &["-s", SecondDevice::ADDRESS],
        with: &[How::Shim],
        verdict: statuses,
    },
    Program {
        name: "rstream",
        both: STREAM,
        server: &["-b", SecondDevice::ADDRESS],
        client: &["-s", SecondDevice::ADDRESS],
        with: &[How::Shim],
        verdict: streams,
    },
    Program {
        name: "riostream",
        both: STREAM,
        server: &["-b", SecondDevice::ADDRESS],
        client: &["-s", SecondDevice::ADDRESS],
        with: &[How::Keep],
        verdict: streams,
    },
];

#[derive(Clone, Copy, PartialEq)]
enum How {
    Without,
    Shim,
    /// The shim also caches registrations for remote access (`REGCACHE_REMOTE=keep`).
    Keep,
}

impl How {
    fn command(self, program: &str) -> Command {
        match self {
            Self::Without => bounded(program),
            Self::Shim => under_shim(program),
            Self::Keep => {
                let mut command = under_shim(program);
                command.env("REGCACHE_REMOTE", "keep");
                command
            }
        }
    }
}

/// Waits until the server listens. The port is then in the kernel's list of sockets, or in that of
/// rdma_cm.
fn await_listener(server: &mut Child) {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(240) {
        assert!(server.try_wait().unwrap().is_none(), "the server has ended");
        // This is port 18600 in the state LISTEN, in the kernel's format.
        let listens = |table: &str| {
            fs::read_to_string(table).is_ok_and(|table| {
                table
                    .lines()
                    .any(|line| line.contains(":48A8 ") && line.contains(" 0A "))
            })
        };
        let ids = Command::new("rdma")
            .args(["resource", "show", "cm_id"])
            .output()
            .unwrap();
        if listens("/proc/net/tcp")
            || listens("/proc/net/tcp6")
            || String::from_utf8_lossy(&ids.stdout).contains("LISTEN")
        {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("the server does not listen");
}

/// Runs the server and the client, and returns the results of both.
fn exchange(program: &Program, how: How) -> [Ran; 2] {
    let mut server = how.command(program.name);
    server.args(program.both).args(program.server);
    let mut client = how.command(program.name);
    client.args(program.both).args(program.client);
    thread::scope(|scope| {
        let (ready, is_ready) = mpsc::channel();
        let server = scope.spawn(move || {
            preload::run_telling(&mut server, |child| {
                await_listener(child);
                ready.send(child.id()).unwrap();
            })
        });
        let client = is_ready.recv().map(|server| {
            let client = run(&mut client);
            if !client.output.status.success() {
                // The client has failed, so no client will connect to the server.
                let _ = Command::new("kill").arg(server.to_string()).status();
            }
            client
        });
        [server.join().unwrap(), client.unwrap()]
    })
}

/// Returns the result of a run, as a user of the program sees it.
fn verdict(program: &Program, ran: &[Ran; 2]) -> Vec<String> {
    let ends = ran.iter().rev().map(|ran| {
        let status = ran.output.status;
        assert!(
            status.success(),
            "{}: {status}\n{}{}",
            program.name,
            ran.stdout,
            ran.stderr
        );
        (program.verdict)(&ran.stdout)
    });
    ends.flatten().collect()
}

fn total(ran: &[Ran; 2], name: &str) -> u64 {
    let summaries: Vec<&Summary> = ran.iter().flat_map(|ran| &ran.summaries).collect();
    assert_eq!(summaries.len(), 2, "{summaries:?}");
    summaries.iter().map(|summary| summary.number(name)).sum()
}

/// Tests one program, and prints its row of the table.
fn is_the_same(name: &str) {
    // All programs use the same port, so only one may run at a time.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let program = PROGRAMS
        .iter()
        .find(|program| program.name == name)
        .unwrap();
    let mut arguments = [program.both, program.server, program.client]
        .into_iter()
        .flatten();
    let is_far = arguments.any(|it| *it == SecondDevice::ADDRESS);
    let _second = is_far.then(SecondDevice::add);
    let without = exchange(program, How::Without);
    let expected = verdict(program, &without);
    assert!(
        !expected.is_empty(),
        "{}{}",
        without[0].stdout,
        without[1].stdout
    );
    let all = std::env::var("REGCACHE_PROGRAMS").is_ok_and(|value| value == "all");
    let with: &[How] = if all {
        &[How::Shim, How::Keep]
    } else {
        program.with
    };
    let mut row = format!("| `{name}` |");
    for &how in with {
        let ran = exchange(program, how);
        assert_eq!(verdict(program, &ran), expected, "{name}");
        let (asked, cached) = (total(&ran, "asked"), total(&ran, "cached"));
        let passed_on = total(&ran, "passed_on");
        assert!(asked > 0);
        assert_eq!(asked, cached + passed_on);
        if how == How::Keep {
            // Two `ibv_mr`s that are held at once cannot share a registration, even if both buffers
            // are in one page.
            let in_use = total(&ran, "in_use");
            assert_eq!((cached, passed_on), (asked - in_use, in_use), "{name}");
        }
        row += &format!(
            " {asked} | {cached} | {passed_on} | {} |",
            total(&ran, "made")
        );
    }
    println!("{row}");
}

#[test]
fn ib_write_bw_comes_to_the_same() {
    is_the_same("ib_write_bw");
}

#[test]
fn ib_read_lat_comes_to_the_same() {
    is_the_same("ib_read_lat");
}

#[test]
fn ib_send_bw_comes_to_the_same() {
    is_the_same("ib_send_bw");
}

#[test]
fn rping_comes_to_the_same() {
    is_the_same("rping");
}

#[test]
fn ibv_rc_pingpong_comes_to_the_same() {
    is_the_same("ibv_rc_pingpong");
}

#[test]
fn ibv_ud_pingpong_comes_to_the_same() {
    is_the_same("ibv_ud_pingpong");
}

#[test]
fn ib_read_bw_comes_to_the_same() {
    is_the_same("ib_read_bw");
}

#[test]
fn ib_atomic_bw_comes_to_the_same() {
    is_the_same("ib_atomic_bw");
}

#[test]
fn ib_send_lat_comes_to_the_same() {
    is_the_same("ib_send_lat");
}

#[test]
fn ibv_srq_pingpong_comes_to_the_same() {
    is_the_same("ibv_srq_pingpong");
}

#[test]
fn ibv_uc_pingpong_comes_to_the_same() {
    is_the_same("ibv_uc_pingpong");
}

#[test]
fn ucmatose_comes_to_the_same() {
    is_the_same("ucmatose");
}

#[test]
fn udaddy_comes_to_the_same() {
    is_the_same("udaddy");
}

#[test]
fn rstream_comes_to_the_same() {
    is_the_same("rstream");
}

#[test]
fn riostream_comes_to_the_same() {
    is_the_same("riostream");
}

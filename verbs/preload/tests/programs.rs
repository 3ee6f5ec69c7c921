//! Runs unmodified programs of Debian on a real device, with the shim and without. The programs'
//! results must be the same.
//!
//! Each program runs as server and client on this machine. With `REGCACHE_PROGRAMS=all` the tests
//! run with all settings. Each then prints its row of the table in docs/guide/preload.md.
#![expect(clippy::unwrap_used, reason = "a test")]

mod preload;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use preload::{Ran, Summary, bounded, preloading, run, shim, under_shim};
use regcache_test_support::SecondDevice;

/// A program, and the arguments with which it runs briefly.
struct Program {
    name: &'static str,
    both: &'static [&'static str],
    server: &'static [&'static str],
    client: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    /// The libraries that are preloaded with the shim, and also without.
    preloads: &'static [&'static str],
    /// The program's standard input is a terminal.
    terminal: bool,
    /// The server serves one client after another until a signal ends it. So its exit status says
    /// nothing, and the shim prints no summary.
    serves_on: bool,
    /// The setting of the shim with which the program runs.
    with: How,
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

/// Returns how many bytes rcopy copied. The copy must be the same as the file.
fn copies(stdout: &str) -> Vec<String> {
    let bytes = totals(stdout);
    if !bytes.is_empty() {
        let (_, to) = TO.split_once(':').unwrap();
        assert_eq!(fs::read(COPIED).unwrap(), fs::read(to).unwrap());
        fs::remove_file(to).unwrap();
    }
    bytes
}

/// Returns the size, the number of messages and the number of acknowledged messages of
/// fi_pingpong, which has checked the bytes.
fn exchanges(stdout: &str) -> Vec<String> {
    let words = stdout
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows = words.filter(|words| words.len() > 3 && words[2].starts_with('='));
    rows.map(|row| row[..3].join(" ")).collect()
}

/// Returns the number of messages in the last line of ucx_perftest.
fn finals(stdout: &str) -> Vec<String> {
    let lines = stdout.lines().filter(|line| line.starts_with("Final:"));
    let words = lines.map(|line| line.split_whitespace().take(2).collect::<Vec<_>>());
    words.map(|words| words.join(" ")).collect()
}

/// The file that rcopy copies.
const COPIED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
/// The server, which is [`SecondDevice::ADDRESS`], and the copy of the file. rcopy maps the copy
/// as shared memory, which the target directory in the virtual machine does not support.
const TO: &str = "192.0.2.1:/tmp/regcache-rcopy";

const STREAM: &[&str] = &[
    "-p", "18600", "-S", "16384", "-C", "20", "-I", "4", "-T", "v",
];

/// The arguments of perftest, for the IPv4 address of lo.
const PERFTEST: &[&str] = &[
    "-d", "rxe0", "-x", "1", "-n", "20", "-s", "65536", "-F", "-p", "18600",
];
const PINGPONG: &[&str] = &["-d", "rxe0", "-g", "1", "-n", "20", "-p", "18600"];
const HERE: &[&str] = &["127.0.0.1"];

/// The settings of most programs.
const USUAL: Program = Program {
    name: "",
    both: &[],
    server: &[],
    client: HERE,
    environment: &[],
    preloads: &[],
    terminal: false,
    serves_on: false,
    with: How::Shim,
    verdict: totals,
};

const PROGRAMS: &[Program] = &[
    Program {
        name: "ib_write_bw",
        both: PERFTEST,
        with: How::Keep,
        verdict: rows,
        ..USUAL
    },
    Program {
        name: "ib_read_lat",
        both: PERFTEST,
        verdict: rows,
        ..USUAL
    },
    Program {
        name: "ib_send_bw",
        both: PERFTEST,
        verdict: rows,
        ..USUAL
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
        verdict: echoes,
        ..USUAL
    },
    Program {
        name: "ibv_rc_pingpong",
        both: PINGPONG,
        server: &["-c"],
        client: &["-c", "127.0.0.1"],
        ..USUAL
    },
    Program {
        name: "ibv_ud_pingpong",
        both: PINGPONG,
        ..USUAL
    },
    Program {
        name: "ib_read_bw",
        both: PERFTEST,
        with: How::Keep,
        verdict: rows,
        ..USUAL
    },
    Program {
        name: "ib_atomic_bw",
        both: &["-d", "rxe0", "-x", "1", "-n", "20", "-F", "-p", "18600"],
        with: How::Keep,
        verdict: rows,
        ..USUAL
    },
    Program {
        name: "ib_send_lat",
        both: &["-R", "-n", "20", "-F", "-s", "4096", "-p", "18600"],
        client: &[SecondDevice::ADDRESS],
        preloads: &["libwaits.so"],
        verdict: rows,
        ..USUAL
    },
    Program {
        name: "ibv_srq_pingpong",
        both: &[
            "-d", "rxe0", "-g", "1", "-n", "20", "-q", "3", "-c", "-p", "18600",
        ],
        ..USUAL
    },
    Program {
        name: "ibv_uc_pingpong",
        both: &["-d", "rxe0", "-g", "1", "-n", "20", "-c", "-p", "18600"],
        ..USUAL
    },
    Program {
        name: "ucmatose",
        both: &["-C", "5", "-S", "1000"],
        server: &["-b", SecondDevice::ADDRESS],
        client: &["-s", SecondDevice::ADDRESS],
        verdict: statuses,
        ..USUAL
    },
    Program {
        name: "udaddy",
        both: &["-C", "5", "-S", "1000"],
        client: &["-s", SecondDevice::ADDRESS],
        verdict: statuses,
        ..USUAL
    },
    Program {
        name: "rstream",
        both: STREAM,
        server: &["-b", SecondDevice::ADDRESS],
        client: &["-s", SecondDevice::ADDRESS],
        verdict: streams,
        ..USUAL
    },
    Program {
        name: "riostream",
        both: STREAM,
        server: &["-b", SecondDevice::ADDRESS],
        client: &["-s", SecondDevice::ADDRESS],
        with: How::Keep,
        verdict: streams,
        ..USUAL
    },
    Program {
        name: "rcopy",
        server: &["-p", "18600"],
        client: &[COPIED, TO, "-p", "18600"],
        serves_on: true,
        with: How::Keep,
        verdict: copies,
        ..USUAL
    },
    Program {
        name: "fi_pingpong",
        both: &[
            "-p",
            "verbs;ofi_rxm",
            "-e",
            "rdm",
            "-I",
            "20",
            "-S",
            "65536",
            "-c",
        ],
        server: &["-B", "18600"],
        client: &["-P", "18600", SecondDevice::ADDRESS],
        // rxe refuses the large completion queue of the default. Without the last variable,
        // messages of this size are copied and not registered.
        environment: &[
            ("FI_UNIVERSE_SIZE", "16"),
            ("FI_VERBS_IFACE", SecondDevice::INTERFACE),
            ("FI_OFI_RXM_SAR_LIMIT", "0"),
        ],
        with: How::Keep,
        verdict: exchanges,
        ..USUAL
    },
    Program {
        name: "ucx_perftest",
        both: &[
            "-t", "tag_bw", "-s", "65536", "-n", "20", "-w", "2", "-p", "18600",
        ],
        // UCX reads the type of a packet from the completions of another device's driver, so the
        // check has to be off for rxe. UCX also hides registered memory from children by default,
        // and then the shim caches nothing.
        environment: &[
            ("UCX_TLS", "rc"),
            ("UCX_NET_DEVICES", "rxe0:1"),
            ("UCX_UD_VERBS_ETH_DGID_CHECK", "n"),
            ("UCX_IB_FORK_INIT", "n"),
        ],
        // Debian 13's program takes another input as a sign that mpirun has started it.
        terminal: true,
        with: How::Keep,
        verdict: finals,
        ..USUAL
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
    fn command(self, program: &Program) -> Command {
        let mut libraries: Vec<_> = program.preloads.iter().map(preload::program).collect();
        if self != Self::Without {
            libraries.insert(0, shim());
        }
        let mut command = if program.terminal {
            let mut shell = preloading(&libraries, "sh");
            shell.args(["-c", "exec \"$0\" \"$@\" 0<>/dev/ptmx", program.name]);
            shell
        } else {
            preloading(&libraries, program.name)
        };
        command.envs(program.environment.iter().copied());
        if self == Self::Keep {
            command.env("REGCACHE_REMOTE", "keep");
        }
        command
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
    let mut server = how.command(program);
    server.args(program.both).args(program.server);
    let mut client = how.command(program);
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
            if program.serves_on || !client.output.status.success() {
                // If the client has failed, no client will connect to the server.
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
        let is_stopped = program.serves_on && status.signal() == Some(libc::SIGTERM);
        assert!(
            status.success() || is_stopped,
            "{}: {status}\n{}{}",
            program.name,
            ran.stdout,
            ran.stderr
        );
        (program.verdict)(&ran.stdout)
    });
    ends.flatten().collect()
}

fn total(program: &Program, ran: &[Ran; 2], name: &str) -> u64 {
    let summaries: Vec<&Summary> = ran.iter().flat_map(|ran| &ran.summaries).collect();
    let ends = if program.serves_on { 1 } else { 2 };
    assert_eq!(summaries.len(), ends, "{summaries:?}");
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
    let is_far = arguments.any(|it| it.starts_with(SecondDevice::ADDRESS));
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
        &[program.with]
    };
    let mut row = String::new();
    let mut asked_before = None;
    for &how in with {
        let ran = exchange(program, how);
        assert_eq!(verdict(program, &ran), expected, "{name}");
        let (asked, cached) = (
            total(program, &ran, "asked"),
            total(program, &ran, "cached"),
        );
        let passed_on = total(program, &ran, "passed_on");
        assert!(asked > 0);
        assert_eq!(asked_before.replace(asked).unwrap_or(asked), asked);
        assert_eq!(asked, cached + passed_on);
        if how == How::Keep {
            // Two `ibv_mr`s that are held at once cannot share a registration, even if both buffers
            // are in one page.
            let in_use = total(program, &ran, "in_use");
            assert_eq!((cached, passed_on), (asked - in_use, in_use), "{name}");
        }
        row += &format!(
            " {cached} | {passed_on} | {} |",
            total(program, &ran, "made")
        );
    }
    println!("| `{name}` | {} |{row}", asked_before.unwrap());
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

#[test]
fn rcopy_comes_to_the_same() {
    is_the_same("rcopy");
}

#[test]
fn fi_pingpong_comes_to_the_same() {
    is_the_same("fi_pingpong");
}

#[test]
fn ucx_perftest_comes_to_the_same() {
    is_the_same("ucx_perftest");
}

/// rxe has no XRC domains, which this program needs. The number is `EOPNOTSUPP`.
#[test]
fn ibv_xsrq_pingpong_is_refused_in_the_same_words() {
    let refused = |mut command: Command| {
        let ran = run(command.args(["-d", "rxe0", "-g", "1"]));
        (ran.output.status.code(), ran.stdout, ran.stderr)
    };
    let without = refused(bounded("ibv_xsrq_pingpong"));
    assert_eq!(without.2, "Couldn't Open the XRC Domain 95\n");
    assert_eq!(refused(under_shim("ibv_xsrq_pingpong")), without);
}

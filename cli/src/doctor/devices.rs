//! Checks the devices that register memory: io_uring, and the RDMA adapters that sysfs and
//! libibverbs list.

use std::fs::File;
use std::io;

use regcache_uring::FileIo;

use super::libibverbs::{self, Verbs};
use super::{Files, Finding, Level};

const CLASS: &str = "/sys/class/infiniband";
const UVERBS: &str = "/sys/class/infiniband_verbs";

/// Returns true if the findings contain a device that works, and no problem with libibverbs.
pub(crate) fn usable(findings: &[Finding]) -> bool {
    let device = |it: &&Finding| it.subject.starts_with("device") || it.subject == "io_uring";
    let lists = |it: &Finding| it.subject != "libibverbs" || it.level == Level::Good;
    findings
        .iter()
        .filter(device)
        .any(|it| it.level == Level::Good)
        && findings.iter().all(lists)
}

pub(crate) fn look(files: &Files) -> Vec<Finding> {
    let open = |path: &str| {
        let mut options = File::options();
        options.read(true).write(true).open(path).map(drop)
    };
    look_with(files, &libibverbs::look(), open)
}

fn look_with(files: &Files, verbs: &Verbs, open: impl Fn(&str) -> io::Result<()>) -> Vec<Finding> {
    let devices = files.names(CLASS);
    let mut findings = vec![library(verbs, &devices)];
    if devices.is_empty() {
        findings.push(no_device(files));
    }
    findings.extend(devices.iter().map(|device| device_of(files, device, &open)));
    findings.extend(peer_memory(files));
    findings
}

/// Returns a note if the module `nvidia_peermem` is loaded. With this module, `ibv_reg_mr` accepts
/// addresses of GPU memory. No monitor reports changes of GPU memory, so the cache does not retain
/// such registrations.
fn peer_memory(files: &Files) -> Option<Finding> {
    files.exists("/sys/module/nvidia_peermem").then(|| {
        Finding::note(
            "nvidia_peermem",
            "loaded: the cache does not retain registrations of GPU memory by address. Register a dma-buf of the memory instead",
        )
    })
}

fn library(verbs: &Verbs, devices: &[String]) -> Finding {
    let subject = "libibverbs";
    match verbs {
        Verbs::NotThere => Finding::missing(
            subject,
            "not installed: no program here can use an RDMA device",
        )
        .fixed_by("apt-get install --no-install-recommends libibverbs1 ibverbs-providers"),
        Verbs::Lists(listed) => {
            let missing: Vec<_> = devices.iter().filter(|it| !listed.contains(it)).collect();
            if missing.is_empty() {
                return Finding::good(subject, "installed, and can use every device of the kernel");
            }
            let missing: Vec<_> = missing.into_iter().map(String::as_str).collect();
            Finding::missing(
                subject,
                format!(
                    "cannot use {}: its provider is not installed, or ib_uverbs is not loaded",
                    missing.join(", ")
                ),
            )
            .fixed_by("apt-get install --no-install-recommends ibverbs-providers")
            .fixed_by("modprobe ib_uverbs")
        }
    }
}

fn no_device(files: &Files) -> Finding {
    let subject = "device";
    if !files.has_module("rdma_rxe") {
        return Finding::missing(
            subject,
            "none, and this kernel has no rdma_rxe module to make a software device with",
        );
    }
    let mut finding = Finding::missing(
        subject,
        "none. To try things out with a software device on lo:",
    );
    if !["/usr/bin/rdma", "/bin/rdma", "/usr/sbin/rdma", "/sbin/rdma"]
        .iter()
        .any(|it| files.exists(it))
    {
        finding = finding.fixed_by("apt-get install --no-install-recommends iproute2");
    }
    finding
        .fixed_by("modprobe -a ib_uverbs rdma_rxe")
        .fixed_by("ip link set lo up")
        .fixed_by("rdma link add rxe0 type rxe netdev lo")
}

fn device_of(files: &Files, device: &str, open: &impl Fn(&str) -> io::Result<()>) -> Finding {
    let subject = format!("device {device}");
    let Some(node) = node_of(files, device) else {
        return Finding::missing(
            subject,
            "not reachable from user space: ib_uverbs is not loaded",
        )
        .fixed_by("modprobe ib_uverbs");
    };
    if let Err(error) = open(&node) {
        return match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => {
                Finding::missing(subject, format!("this user may not open {node}"))
                    .fixed_by(format!("chmod a+rw {node}"))
            }
            Some(libc::ENOENT) => Finding::missing(
                subject,
                format!(
                    "{node} does not exist: udev is not running, or the file was not passed to the container \
                     (docker run --device={node})"
                ),
            )
            .fixed_by(make_node(files, device, &node)),
            _ => Finding::missing(subject, format!("cannot open {node}: {error}")),
        };
    }
    let ports = ports_of(files, device);
    let said: Vec<_> = ports.iter().map(|port| port.0.as_str()).collect();
    let says = format!("{node} opens; {}", said.join("; "));
    let down = ports.iter().find(|port| !port.1);
    match down.filter(|_| ports.iter().all(|port| !port.1)) {
        None => Finding::good(subject, says),
        Some((_, _, netdev)) => {
            let finding = Finding::note(subject, format!("{says}; no port is active"));
            match netdev {
                Some(netdev) => finding.fixed_by(format!("ip link set {netdev} up")),
                None => finding,
            }
        }
    }
}

/// Returns the path of the character device of an RDMA device.
fn node_of(files: &Files, device: &str) -> Option<String> {
    let uverbs = files.names(UVERBS).into_iter().find(|uverbs| {
        let of = files.read(&format!("{UVERBS}/{uverbs}/ibdev"));
        of.as_deref() == Some(device)
    })?;
    Some(format!("/dev/infiniband/{uverbs}"))
}

fn make_node(files: &Files, device: &str, node: &str) -> String {
    let uverbs = node_of(files, device).unwrap_or_default();
    let name = uverbs.rsplit('/').next().unwrap_or_default();
    let number = files
        .read(&format!("{UVERBS}/{name}/dev"))
        .unwrap_or_default();
    let (major, minor) = number.split_once(':').unwrap_or(("MAJOR", "MINOR"));
    format!("mkdir -p /dev/infiniband && mknod -m 666 {node} c {major} {minor}")
}

/// Returns three values for each port: its description, whether it is active, and its network
/// interface.
fn ports_of(files: &Files, device: &str) -> Vec<(String, bool, Option<String>)> {
    let ports = format!("{CLASS}/{device}/ports");
    let of = |port: String| {
        let read = |name: &str| files.read(&format!("{ports}/{port}/{name}"));
        let state = read("state").unwrap_or_default();
        let link = read("link_layer").unwrap_or_default();
        let netdev = read("gid_attrs/ndevs/0").filter(|it| !it.is_empty());
        let on = netdev.as_deref().map(|it| format!(" on {it}"));
        let active = state.contains("ACTIVE");
        let state = state.rsplit(' ').next().unwrap_or_default();
        let said = format!("port {port}: {state}, {link}{}", on.unwrap_or_default());
        (said, active, netdev)
    };
    files.names(&ports).into_iter().map(of).collect()
}

/// Checks whether this machine supports fixed buffers of io_uring.
pub(crate) fn look_at_io_uring(files: &Files) -> Vec<Finding> {
    let subject = "io_uring";
    let Err(error) = FileIo::new() else {
        let says = "works, with fixed buffers";
        return vec![Finding::good(subject, says)];
    };
    let switch = files.read("/proc/sys/kernel/io_uring_disabled");
    vec![match switch.as_deref() {
        Some(off @ ("1" | "2")) => Finding::missing(
            subject,
            format!("disabled (kernel.io_uring_disabled is {off})"),
        )
        .fixed_by("sysctl kernel.io_uring_disabled=0"),
        _ if error.raw_os_error() == Some(libc::ENOMEM) => Finding::missing(
            subject,
            format!("{error}: the limit on pinned memory (RLIMIT_MEMLOCK) is too low"),
        ),
        _ => Finding::missing(
            subject,
            format!("{error}: the kernel is built without io_uring, or a sandbox forbids it"),
        ),
    }]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::files::tests::machine;
    use super::*;

    const RXE: &[(&str, &str)] = &[
        ("/sys/class/infiniband/rxe0/ports/1/state", "4: ACTIVE\n"),
        (
            "/sys/class/infiniband/rxe0/ports/1/link_layer",
            "Ethernet\n",
        ),
        (
            "/sys/class/infiniband/rxe0/ports/1/gid_attrs/ndevs/0",
            "lo\n",
        ),
        ("/sys/class/infiniband_verbs/abi_version", "6\n"),
        ("/sys/class/infiniband_verbs/uverbs0/ibdev", "rxe0\n"),
        ("/sys/class/infiniband_verbs/uverbs0/dev", "231:192\n"),
    ];

    fn knows_rxe0() -> Verbs {
        Verbs::Lists(vec!["rxe0".to_owned()])
    }

    fn refuse(errno: i32) -> impl Fn(&str) -> io::Result<()> {
        move |_| Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn registrations_of_gpu_memory_are_not_retained_and_the_note_says_so() {
        let says = |files: &[(&str, &str)], name: &str| {
            let (root, files) = machine(name, files);
            let found = look_with(&files, &knows_rxe0(), |_| Ok(()));
            fs::remove_dir_all(root).unwrap();
            found
                .iter()
                .any(|it| it.subject == "nvidia_peermem" && it.says.contains("does not retain"))
        };
        let loaded = [RXE, &[("/sys/module/nvidia_peermem/version", "1\n")]].concat();
        assert!(says(&loaded, "peermem"));
        assert!(!says(RXE, "no-peermem"));
    }

    #[test]
    fn a_device_that_opens_is_good_and_its_ports_are_told() {
        let (root, files) = machine("rxe", RXE);
        let found = look_with(&files, &knows_rxe0(), |_| Ok(()));
        assert!(usable(&found));
        assert_eq!(
            found[1].says,
            "/dev/infiniband/uverbs0 opens; port 1: ACTIVE, Ethernet on lo"
        );
        let down = root.join("sys/class/infiniband/rxe0/ports/1/state");
        fs::write(down, "1: DOWN\n").unwrap();
        let found = look_with(&files, &knows_rxe0(), |_| Ok(()));
        assert!(!usable(&found));
        assert_eq!(found[1].fix, ["ip link set lo up"]);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_keeps_a_device_from_being_used_has_its_command() {
        let (root, files) = machine("nodes", RXE);
        let fix = |verbs: &Verbs, errno| {
            let found = look_with(&files, verbs, refuse(errno));
            assert!(!usable(&found));
            found.into_iter().flat_map(|it| it.fix).collect::<Vec<_>>()
        };
        assert_eq!(
            fix(&knows_rxe0(), libc::EACCES),
            ["chmod a+rw /dev/infiniband/uverbs0"]
        );
        assert_eq!(
            fix(&knows_rxe0(), libc::ENOENT),
            ["mkdir -p /dev/infiniband && mknod -m 666 /dev/infiniband/uverbs0 c 231 192"]
        );
        let found = look_with(&files, &Verbs::NotThere, |_| Ok(()));
        assert!(!usable(&found));
        assert!(found[0].fix[0].contains("libibverbs1"));
        let found = look_with(&files, &Verbs::Lists(Vec::new()), |_| Ok(()));
        assert!(!usable(&found));
        assert!(found[0].says.contains("cannot use rxe0"));
        fs::remove_dir_all(root.join("sys/class/infiniband_verbs")).unwrap();
        let found = look_with(&files, &knows_rxe0(), |_| Ok(()));
        assert_eq!(found[1].fix, ["modprobe ib_uverbs"]);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn without_a_device_one_in_software_is_advised_where_the_kernel_has_it() {
        let dep = [("/lib/modules/6.1.0/modules.dep", "kernel/rdma_rxe.ko:")];
        let (root, files) = machine("no-device", &dep);
        let found = look_with(&files, &Verbs::Lists(Vec::new()), |_| Ok(()));
        let last = found[1].fix.last().unwrap();
        assert_eq!(last, "rdma link add rxe0 type rxe netdev lo");
        fs::remove_dir_all(root).unwrap();
        let (root, files) = machine("no-rxe", &[("/proc/modules", "")]);
        let found = look_with(&files, &Verbs::Lists(Vec::new()), |_| Ok(()));
        assert!(found[1].fix.is_empty() && found[1].level == Level::Missing);
        fs::remove_dir_all(root).unwrap();
    }
}

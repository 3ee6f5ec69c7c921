//! Runs the example of an exporter, and checks the dashboard that comes with it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use regcache::Stats;
use regcache_uring::FileIo;
use serde_json::Value;

/// Returns the names of the metrics in a text.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names = words.filter(|word| word.starts_with("regcache_"));
    names.map(str::to_owned).collect()
}

#[test]
fn the_dashboard_shows_only_metrics_that_exist() {
    let dashboard = include_str!("../examples/grafana.json");
    let value: Value = serde_json::from_str(dashboard).unwrap();
    assert!(value["panels"].as_array().unwrap().len() >= 6);
    let shown = metrics(dashboard);
    let exported = metrics(&Stats::default().prometheus("x").to_string());
    let unknown: Vec<_> = shown.difference(&exported).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    // Every counter of a cache is in some panel.
    let missing: Vec<_> = exported.difference(&shown).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_scrape_of_the_exporter_has_the_counters() {
    if FileIo::new().is_err() {
        eprintln!("no io_uring here");
        return;
    }
    // cargo builds the examples of a package before its tests, and puts them beside the directory
    // of the tests.
    let tests = std::env::current_exe().unwrap();
    let built = tests.ancestors().nth(2).map(Path::to_owned).unwrap();
    let mut exporter = Command::new(built.join("examples/exporter"))
        .arg("127.0.0.1:0")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(exporter.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("http://").unwrap();
    let address = address.strip_suffix("/metrics").unwrap();
    let mut said = String::new();
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    stream.read_to_string(&mut said).unwrap();
    exporter.kill().unwrap();
    exporter.wait().unwrap();
    assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
    assert!(
        said.contains("\nregcache_hits_total{cache=\"io_uring\"} "),
        "{said}"
    );
}

//! What a transfer costs by each way of registering its buffer.
//!
//! The program `bench` measures it over any verbs device, connected with itself or between two hosts, and over
//! io_uring's fixed buffers; writes what it has measured as JSON; and makes reports, comparisons and projections of such
//! files.
//!
//! A [`Workload`] is done by [`Contestant`]s by [turns], on a [`Fabric`]. Each has a [policy] for its buffers.
#![warn(missing_docs)]

mod buffers;
pub mod compare;
mod contestant;
pub mod cost;
mod counted;
mod error;
mod moving;
pub mod peer;
pub mod plan;
mod plot;
pub mod policy;
pub mod project;
pub mod promise;
mod remote;
pub mod report;
pub mod results;
mod sample;
pub mod scaling;
mod server;
pub mod table;
pub mod turns;
mod uring_wire;
mod verbs_wire;
mod wire;
mod worker;
mod workload;

pub use contestant::{Contestant, contestant};
pub use counted::{Counted, Counts, Reading};
pub use error::Error;
pub use moving::{Moved, move_bytes};
pub use remote::Remote;
pub use sample::Tally;
pub use server::serve;
pub use uring_wire::Uring;
pub use verbs_wire::Verbs;
pub use wire::{Fabric, Keyed, Memory, OnDemandRegistration, Wire};
pub use workload::{Op, Policy, Workload, bytes};

//! What a transfer costs by each way of registering its buffer.
//!
//! The program `bench` measures it over any verbs device, connected with itself or between two hosts, and over
//! io_uring's fixed buffers; writes what it has measured as JSON; and makes reports, comparisons and projections of such
//! files.
//!
//! A [`Workload`] is done by [`Variant`]s by [rounds], on a [`Provider`]. Each has a [strategy] for its buffers.
#![warn(missing_docs)]

mod buffers;
mod bulk;
pub mod compare;
mod counted;
mod endpoint;
mod error;
pub mod peer;
pub mod plan;
mod plot;
pub mod preparer;
pub mod project;
mod qp_endpoint;
pub mod registration_cost;
mod remote;
pub mod report;
pub mod results;
pub mod rounds;
pub mod scaling;
mod server;
pub mod table;
pub mod threshold;
mod timing;
mod uring;
mod variant;
mod verbs;
mod worker;
mod workload;

pub use bulk::{Moved, move_bytes};
pub use counted::{Counted, Counts, Reading};
pub use endpoint::{Endpoint, Keyed, Memory, OnDemandRegistration, Provider};
pub use error::Error;
pub use remote::Remote;
pub use server::serve;
pub use timing::Tally;
pub use uring::Uring;
pub use variant::{Variant, variant};
pub use verbs::Verbs;
pub use workload::{Op, Strategy, Workload, bytes};

//! Measures the cost of a transfer with each strategy. A strategy is a way in which the buffer of a
//! transfer is registered.
//!
//! The program `transfer` measures two kinds of devices. One kind is a verbs device, which is
//! connected with itself or with another host. The other kind is io_uring with fixed buffers. The
//! program writes its results into JSON files. It also makes reports, comparisons and projections
//! from these files.
//!
//! The [`Variant`]s of a [`Workload`] run in [rounds]. Each variant registers its buffers with one
//! [`Strategy`]. A [`Provider`] makes the [endpoints](Endpoint) and registrations of the variants.
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

//! The cost of a transfer by the strategy that registers its buffer.
//!
//! The program `transfer` measures it over any verbs device, connected with itself or between two
//! hosts, and over io_uring's fixed buffers. It writes its results as JSON, and makes reports,
//! comparisons and projections of such files.
//!
//! A [`Workload`] is done in [rounds] by [`Variant`]s, each of which has a [`Strategy`] for its
//! buffers. A [`Provider`] gives them [endpoints](Endpoint) and registrations.
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

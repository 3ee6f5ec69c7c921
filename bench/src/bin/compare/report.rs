//! [`Report`]: the figures so far.

use regcache_bench::block::{Contestant, Effort, take_turns};
use regcache_bench::figure::{Figure, Limit, table};

pub(crate) struct Report {
    only: String,
    pub(crate) effort: Effort,
    figures: Vec<Figure>,
    /// Turns thrown away, and all.
    turns: (usize, usize),
}

impl Report {
    pub(crate) fn new(only: String, effort: Effort) -> Self {
        Self {
            only,
            effort,
            figures: Vec::new(),
            turns: (0, 0),
        }
    }

    /// Whether any figure that begins with `name`, or is it, is asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        name.starts_with(&self.only) || self.only.starts_with(name)
    }

    pub(crate) fn add(&mut self, figure: Figure) {
        eprintln!("{}", figure.line());
        self.figures.push(figure);
    }

    /// Measures regcache by turns with UCX, and if it is given with what one thread takes.
    pub(crate) fn contest<'a>(
        &mut self,
        name: &str,
        limit: Limit,
        regcache: &mut Contestant<'a>,
        ucx: Option<&mut Contestant<'a>>,
        one_thread: Option<&mut Contestant<'a>>,
    ) {
        if !self.wants(name) {
            return;
        }
        let beside_ucx = ucx.is_some();
        let beside_one = one_thread.is_some();
        let mut contestants = vec![regcache];
        contestants.extend(ucx);
        contestants.extend(one_thread);
        let medians = take_turns(self.effort, &mut contestants);
        self.turns.0 += medians.disturbed;
        self.turns.1 += medians.disturbed + self.effort.turns;
        self.add(Figure {
            name: name.to_owned(),
            value: medians.ns[0],
            unit: "ns",
            ucx: beside_ucx.then(|| medians.ns[1]),
            ratio_ucx: beside_ucx.then(|| medians.ratios[1]),
            ratio_one_thread: beside_one.then(|| medians.ratios[contestants.len() - 1]),
            limit,
        });
    }

    pub(crate) fn print(&self) {
        println!("{}", table(&self.figures));
        println!(
            "Medians; ratios are medians of the ratios of neighbouring blocks. {} of {} turns were disturbed and measured again.\n",
            self.turns.0, self.turns.1
        );
        for figure in &self.figures {
            println!("{}", figure.line());
        }
    }
}

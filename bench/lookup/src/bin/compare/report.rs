//! [`Report`]: the figures so far.

use std::time::Duration;

use regcache_bench::block::{Contestant, Effort, Turns, take_turns};
use regcache_bench::figure::{Figure, Limit, table};

use crate::Result;

/// How often caches are set up anew: where their memory comes to lie matters.
const BUILDS: usize = 5;

const LONGEST_BLOCK: Duration = Duration::from_millis(5);

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
        if self.wants(name) {
            self.judge(
                name,
                limit,
                &contest(self.effort, regcache, ucx, one_thread),
            );
        }
    }

    /// A [`contest`] on caches of so many entries, which are set up anew several times.
    pub(crate) fn contests(
        &mut self,
        name: &str,
        limit: Limit,
        entries: usize,
        mut run: impl FnMut(Effort) -> Result<Turns>,
    ) -> Result<()> {
        if !self.wants(name) {
            return Ok(());
        }
        let mut effort = self.effort;
        effort.turns = effort.turns.div_ceil(BUILDS);
        if entries >= 10_000 {
            // Each cache drives the other's entries out of the processor's caches; a block must be long
            // enough for most of it to be with them back.
            let block = Duration::from_micros(entries as u64 / 5).min(LONGEST_BLOCK);
            effort.block = effort.block.max(block);
            effort.turns = effort.turns.div_ceil(2);
        }
        let mut turns = Turns::default();
        for _ in 0..BUILDS {
            turns.extend(run(effort)?);
        }
        self.judge(name, limit, &turns);
        Ok(())
    }

    /// A figure from the turns of a [`contest`].
    pub(crate) fn judge(&mut self, name: &str, limit: Limit, turns: &Turns) {
        let ucx = cfg!(feature = "ucx");
        let one_thread = turns.contestants() > 1 + usize::from(ucx);
        let (disturbed, all) = turns.disturbed();
        self.turns.0 += disturbed;
        self.turns.1 += all;
        self.add(Figure {
            name: name.to_owned(),
            value: turns.ns(0),
            unit: "ns",
            ucx: ucx.then(|| turns.ns(1)),
            ratio_ucx: ucx.then(|| turns.ratio(0, 1)),
            ratio_one_thread: one_thread.then(|| turns.ratio(0, 1 + usize::from(ucx))),
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

/// Turns of regcache, and of UCX and of one thread if there are those.
pub(crate) fn contest<'a>(
    effort: Effort,
    regcache: &mut Contestant<'a>,
    ucx: Option<&mut Contestant<'a>>,
    one_thread: Option<&mut Contestant<'a>>,
) -> Turns {
    let mut contestants = vec![regcache];
    contestants.extend(ucx);
    contestants.extend(one_thread);
    take_turns(effort, &mut contestants)
}

//! Refused calls that the kernel has counted by sender.

use super::Monitor;
use crate::{clock, kernel::KernelError, refusals::REFUSED};

impl Monitor {
    /// Goes on with what an agent before has told; `is_unknown` if nobody knows how much that is.
    pub(super) fn restore_refusals(&mut self, is_unknown: bool) -> Result<(), KernelError> {
        let (table, told) = &mut self.refusals;
        for (name, value) in self.reporter.facts(REFUSED) {
            told.restore(name, value);
        }
        told.begin(table.map_id());
        if is_unknown {
            told.skip(&table.all()?);
        }
        Ok(())
    }

    /// Tells what is new of each sender, has calls of all told one by one again, and takes out who
    /// has made none for long.
    pub(super) fn report_refusals(&mut self) -> Result<(), KernelError> {
        let (table, told) = &mut self.refusals;
        let all = table.all()?;
        let now_ns = clock::since_boot_ns();
        for (tracked, (name, value)) in told.news(&all) {
            self.table.count_refused(tracked, now_ns, &mut self.reports);
            self.reporter.set_fact(name, Some(value));
        }
        for sender in told.absent(&all) {
            self.reporter.set_fact(told.forget(&sender), None);
        }
        for (sender, last) in told.quiet(&all, now_ns) {
            if table.forget(&sender, &last)? {
                self.reporter.set_fact(told.forget(&sender), None);
            }
        }
        table.next_turn()?;
        self.report()
    }
}

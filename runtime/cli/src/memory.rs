//! What memory this machine has, and whether a forecast fits into it.
//!
//! Invariants
//! - Where the system says nothing, nothing is promised: the answer is "unknown".
//! - A limit of the process's control group counts where it is below the machine's memory: inside a
//!   container it is what ends the process.

/// Memory, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// All of it.
    pub(crate) total: Option<u64>,
    /// What programs may still take without swapping.
    pub(crate) available: Option<u64>,
}

/// Whether something fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fit {
    /// Into what is free.
    Fits,
    /// Into the machine, once other programs have given up some.
    Tight,
    /// Not into the machine.
    No,
    /// The system does not say.
    Unknown,
}

impl Memory {
    /// As the system says.
    pub(crate) fn read() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let group = |name: &str| text(&format!("/sys/fs/cgroup/{name}")).trim().parse().ok();
        Self::of(&text("/proc/meminfo"), group("memory.max"), group("memory.current"))
    }

    /// Of the text of `/proc/meminfo`, and limit and use of the control group if it has a limit.
    fn of(meminfo: &str, limit: Option<u64>, used: Option<u64>) -> Self {
        let field = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
        };
        let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        let room = limit.map(|limit| limit.saturating_sub(used.unwrap_or(0)));
        Self {
            total: least(field("MemTotal:"), limit),
            available: least(field("MemAvailable:"), room),
        }
    }

    /// Whether that many bytes fit.
    pub(crate) fn fit(&self, need: u64) -> Fit {
        match (self.available, self.total) {
            (Some(available), _) if need <= available => Fit::Fits,
            (_, Some(total)) if need > total => Fit::No,
            (Some(_), Some(_)) => Fit::Tight,
            _ => Fit::Unknown,
        }
    }

    /// The same in words, with what is there.
    pub(crate) fn words(&self, need: u64) -> String {
        let (free, all) = (in_gib(self.available), in_gib(self.total));
        match self.fit(need) {
            Fit::Fits => format!("yes: {free} are free"),
            Fit::Tight => format!("not now: {free} of {all} are free; close other programs"),
            Fit::No => format!(
                "no: this machine has {all}; a GGUF file with quantised blocks or a smaller model may"
            ),
            Fit::Unknown => "unknown: this system does not say what memory it has".to_owned(),
        }
    }
}

/// Bytes for people.
pub(crate) fn in_gib(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), |b| format!("{:.1} GiB", b as f64 / 1_073_741_824.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       8000 kB\nMemFree:  1 kB\nMemAvailable:   3000 kB\n";

    #[test]
    fn what_fits_is_told_from_what_is_free_and_what_there_is() {
        let memory = Memory::of(MEMINFO, None, None);
        assert_eq!(memory.available, Some(3000 * 1024));
        let fits = [3000, 3001, 8000, 8001].map(|kib| memory.fit(kib * 1024));
        assert_eq!(fits, [Fit::Fits, Fit::Tight, Fit::Tight, Fit::No]);
        assert_eq!(Memory::default().fit(1), Fit::Unknown);
        assert!(memory.words(9000 * 1024).contains("this machine has 0.0 GiB"));
    }

    #[test]
    fn a_limit_of_the_control_group_counts() {
        let memory = Memory::of(MEMINFO, Some(2000 * 1024), Some(500 * 1024));
        assert_eq!((memory.total, memory.available), (Some(2000 * 1024), Some(1500 * 1024)));
        assert_eq!(memory.fit(2001 * 1024), Fit::No);
        let wide = Memory::of(MEMINFO, Some(1 << 40), Some(0));
        assert_eq!(wide, Memory::of(MEMINFO, None, None));
    }
}

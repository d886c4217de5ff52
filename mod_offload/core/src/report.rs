//! The state of the limits and of the throttled transfers, for people and for programs: text, JSON.

use std::fmt::Write as _;

use crate::admission::{Directory, Kind};
use crate::ledger::{Scope, Snapshot};
use crate::transfers::Transfer;

/// Everything at one moment.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// Which limits there are.
    pub directory: &'a Directory,
    /// What is held of them.
    pub snapshot: &'a Snapshot,
    /// The throttled transfers that run.
    pub transfers: &'a [Transfer],
    /// How many workers throttling may hold.
    pub max_held: u32,
}

impl State<'_> {
    /// How many workers throttling holds.
    fn held(&self) -> u64 {
        let entries = self.directory.entries().iter();
        let held = entries.filter(|entry| entry.kind == Kind::ChokeMaxHeld);
        held.map(|entry| self.snapshot.scope(entry.scope).held).sum()
    }
}

/// Tables for people.
pub fn text(state: &State<'_>) -> String {
    let State { directory, snapshot, .. } = *state;
    let mut text = format!(
        "{:<28} {:>8} {:>8} {:>8} {:>8} {:>10} {:>10}  {}\n",
        "limit", "most", "held", "clients", "greatest", "refused", "uncounted", "where"
    );
    for entry in directory.entries() {
        let scope = snapshot.scope(entry.scope);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<28} {:>8} {:>8} {:>8} {:>8} {:>10} {:>10}  {}",
            entry.kind.directive().to_string_lossy(),
            entry.most,
            scope.held,
            scope.keys,
            scope.greatest,
            scope.refusals + scope.dry_refusals,
            scope.overflows,
            printable(&entry.place)
        );
    }
    let others = snapshot.scope(Scope(0));
    let _ =
        writeln!(text, "\nin .htaccess files: {} held, {} refused", others.held, others.refusals);
    let _ = writeln!(
        text,
        "counters: {} in the table, {} in use, {} leases of {} processes, {} not counted for want of room",
        snapshot.entries, snapshot.busy, snapshot.leases, snapshot.owners, snapshot.overflows
    );
    let _ = writeln!(
        text,
        "throttled: {} transfers, {} of {} workers held\n",
        state.transfers.len(),
        state.held(),
        state.max_held
    );
    if state.transfers.is_empty() {
        return text;
    }
    let _ = writeln!(
        text,
        "{:<40} {:>12} {:>12} {:>14} {:>7} {:<11}  path",
        "client", "rate", "now", "bytes", "streams", "how"
    );
    for transfer in state.transfers {
        let _ = writeln!(
            text,
            "{:<40} {:>12} {:>12} {:>14} {:>7} {:<11}  {}",
            printable(&transfer.client),
            transfer.figures.set,
            transfer.figures.now,
            transfer.figures.bytes,
            transfer.streams,
            transfer.manner.name(),
            printable(&transfer.path)
        );
    }
    text
}

/// The same for programs.
pub fn json(state: &State<'_>) -> String {
    let State { directory, snapshot, .. } = *state;
    let mut text = String::from("{\"scopes\":[");
    for (index, entry) in directory.entries().iter().enumerate() {
        let scope = snapshot.scope(entry.scope);
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(
            text,
            "{comma}{{\"directive\":{},\"place\":{},\"limit\":{},\"held\":{},\"clients\":{},\"greatest\":{},\
             \"refused\":{},\"dry_refused\":{},\"uncounted\":{}}}",
            quoted(&entry.kind.directive().to_string_lossy()),
            quoted(&entry.place),
            entry.most,
            scope.held,
            scope.keys,
            scope.greatest,
            scope.refusals,
            scope.dry_refusals,
            scope.overflows
        );
    }
    text.push_str("],\"transfers\":[");
    for (index, transfer) in state.transfers.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(
            text,
            "{comma}{{\"client\":{},\"path\":{},\"rate\":{},\"now\":{},\"bytes\":{},\"streams\":{},\"how\":\"{}\"}}",
            quoted(&transfer.client),
            quoted(&transfer.path),
            transfer.figures.set,
            transfer.figures.now,
            transfer.figures.bytes,
            transfer.streams,
            transfer.manner.name()
        );
    }
    let _ =
        write!(text, "],\"choke\":{{\"held\":{},\"max_held\":{}}}", state.held(), state.max_held);
    let others = snapshot.scope(Scope(0));
    let _ = writeln!(
        text,
        ",\"htaccess\":{{\"held\":{},\"refused\":{}}},\"table\":{{\"entries\":{},\"busy\":{},\"leases\":{},\
         \"processes\":{},\"uncounted\":{}}}}}",
        others.held,
        others.refusals,
        snapshot.entries,
        snapshot.busy,
        snapshot.leases,
        snapshot.owners,
        snapshot.overflows
    );
    text
}

/// A text as JSON has it (RFC 8259, section 7).
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for char in text.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            '\0'..='\u{1f}' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(char));
            }
            _ => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { '?' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::ScopeName;
    use crate::ledger::ScopeSnapshot;
    use crate::transfers::{Figures, Manner};

    fn state() -> (Directory, Snapshot) {
        let mut directory = Directory::default();
        let place = "/a \"b\"\n of www:80";
        directory.declare(Kind::LoadLimit, ScopeName::of(Kind::LoadLimit, place), place, 5);
        let row = usize::from(directory.entries()[0].scope.0);
        let mut snapshot =
            Snapshot { scopes: vec![ScopeSnapshot::default(); 1024], ..Snapshot::default() };
        snapshot.scopes[row] = ScopeSnapshot {
            held: 3,
            keys: 2,
            greatest: 2,
            refusals: 7,
            ..ScopeSnapshot::default()
        };
        (directory, snapshot)
    }

    #[test]
    fn a_program_reads_what_is_held() {
        let (directory, snapshot) = state();
        let transfer = Transfer {
            client: "::1".to_owned(),
            path: "/a\"b".to_owned(),
            figures: Figures { set: 10, now: 9, bytes: 8, ..Figures::default() },
            streams: 1,
            manner: Manner::Pulled,
        };
        let transfers = &[transfer][..];
        let json =
            json(&State { directory: &directory, snapshot: &snapshot, transfers, max_held: 4 });
        assert!(
            json.contains(
                "\"transfers\":[{\"client\":\"::1\",\"path\":\"/a\\\"b\",\"rate\":10,\"now\":9,\"bytes\":8,\"streams\":1,\
                 \"how\":\"pulled\"}],\"choke\":{\"held\":0,\"max_held\":4}"
            ),
            "{json}"
        );
        assert!(
            json.contains(
                "{\"directive\":\"LoadLimit\",\"place\":\"/a \\\"b\\\"\\u000a of www:80\",\"limit\":5,\"held\":3,\
                 \"clients\":2,\"greatest\":2,\"refused\":7,\"dry_refused\":0,\"uncounted\":0}"
            ),
            "{json}"
        );
    }

    #[test]
    fn a_person_reads_a_line_for_each_limit() {
        let (directory, snapshot) = state();
        let transfers = &[Transfer::default()][..];
        let text =
            text(&State { directory: &directory, snapshot: &snapshot, transfers, max_held: 4 });
        assert!(text.contains("1 transfers, 0 of 4 workers"), "{text}");
        let line = text.lines().nth(1).unwrap();
        assert_eq!(
            line.split_whitespace().take(6).collect::<Vec<_>>(),
            ["LoadLimit", "5", "3", "2", "2", "7"]
        );
        assert!(line.ends_with("/a \"b\"? of www:80"));
    }
}

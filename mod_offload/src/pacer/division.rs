//! Who gets how much of the rates that connections share.

use std::collections::HashMap;

use offload_core::rate::{divide, floor};
use offload_core::transfers::{Claim, Row};
use offload_core::units::Rate;

/// In the first round nobody knows what the other shares give; in each further one what they gave in the one
/// before.
const ROUNDS: usize = 4;

/// Divides each of the common rates among all who take part in it, in whichever process; who takes part in
/// two gets the lesser part, and what the other one cannot give him goes to the others.
pub(super) fn parts(shares: &HashMap<u64, Rate>, claims: &[Claim]) -> HashMap<Row, u64> {
    let mut members: HashMap<u64, Vec<&Claim>> = HashMap::new();
    for claim in claims {
        for name in claim.shares {
            if shares.contains_key(&name) {
                members.entry(name).or_default().push(claim);
            }
        }
    }
    // By member and share: what it gets of this one.
    let mut parts: HashMap<(Row, u64), u64> = HashMap::new();
    for _ in 0..ROUNDS {
        let before = std::mem::take(&mut parts);
        for (&name, members) in &members {
            let Some(&rate) = shares.get(&name) else { continue };
            let least = floor(rate, members.len());
            let wants: Vec<u64> = members
                .iter()
                .map(|claim| {
                    let others = claim.shares.iter().filter(|&&other| other != 0 && other != name);
                    let others = others.filter_map(|&other| before.get(&(claim.row, other)));
                    let wants = claim.wants.max(least).min(claim.most);
                    others.fold(wants, |wants, &part| wants.min(part))
                })
                .collect();
            for (claim, part) in members.iter().zip(divide(rate.per_second(), &wants)) {
                parts.insert((claim.row, name), part);
            }
        }
    }
    let mut least = HashMap::new();
    for ((row, _), part) in parts {
        least.entry(row).and_modify(|known: &mut u64| *known = part.min(*known)).or_insert(part);
    }
    least
}

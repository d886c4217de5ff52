//! Who gets how much of the rates that connections share.

use std::collections::HashMap;

use offload_core::rate::{divide, floor};
use offload_core::transfers::{Claim, Row};
use offload_core::units::Rate;

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
    let mut parts: HashMap<Row, u64> = HashMap::new();
    // The second round knows what the other shares gave in the first.
    for _ in 0..2 {
        let before = std::mem::take(&mut parts);
        for (name, members) in &members {
            let Some(&rate) = shares.get(name) else { continue };
            let least = floor(rate, members.len());
            let wants: Vec<u64> = members
                .iter()
                .map(|claim| {
                    let is_in_another =
                        claim.shares.iter().any(|other| *other != 0 && other != name);
                    let other = before.get(&claim.row).filter(|_| is_in_another);
                    claim.wants.min(other.copied().unwrap_or(u64::MAX)).max(least).min(claim.most)
                })
                .collect();
            for (claim, part) in members.iter().zip(divide(rate.per_second(), &wants)) {
                parts
                    .entry(claim.row)
                    .and_modify(|known| *known = part.min(*known))
                    .or_insert(part);
            }
        }
    }
    parts
}

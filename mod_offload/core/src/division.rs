//! Who gets how much of the rates that connections share.
//!
//! Max-min fairness over several constraints at once: the parts of all grow equally until somebody has what
//! he wants or a common rate is used up; who takes part in that one stays where he is, and the others grow
//! on (progressive filling: Bertsekas and Gallager, Data Networks, section 6.5.2). So what one cannot take,
//! be it for his own sake or for another rate's, goes to the others.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use crate::transfers::{Claim, Row};
use crate::units::Rate;

/// A common rate while it is divided.
struct Pool {
    rate: Rate,
    /// Of the claims, by their places.
    members: Vec<usize>,
    /// What nobody has yet, in bytes a second.
    left: u64,
    /// How many members may still get more.
    open: u64,
}

impl Pool {
    /// How far its open members can grow together; `None` if it has none.
    fn level(&self) -> Option<u64> {
        self.left.checked_div(self.open)
    }
}

/// Divides the common rates among all who take part in them: a part for each claim, in bytes a second and
/// never none. Where two say different things of one rate, the lesser holds.
pub fn divide(claims: &[Claim]) -> BTreeMap<Row, Rate> {
    let mut names: BTreeMap<u64, usize> = BTreeMap::new();
    let mut pools: Vec<Pool> = Vec::new();
    for (at, claim) in claims.iter().enumerate() {
        for shared in claim.shares.iter().flatten() {
            let pool = *names.entry(shared.name).or_insert_with(|| {
                pools.push(Pool { rate: shared.rate, members: Vec::new(), left: 0, open: 0 });
                pools.len() - 1
            });
            pools[pool].rate = pools[pool].rate.min(shared.rate);
            pools[pool].members.push(at);
        }
    }
    for pool in &mut pools {
        pool.left = pool.rate.per_second();
        pool.open = pool.members.len() as u64;
    }
    let pools_of = |claim: &Claim| claim.shares.map(|shared| Some(names[&shared?.name]));
    let wants: Vec<u64> = claims
        .iter()
        .map(|claim| {
            let pools = pools_of(claim).into_iter().flatten().map(|pool| &pools[pool]);
            let least = pools.map(|pool| floor(pool.rate, pool.members.len())).min();
            claim.wants.max(least.unwrap_or(0)).min(claim.most)
        })
        .collect();
    let mut parts: Vec<Option<u64>> = vec![None; claims.len()];
    let mut settle = |pools: &mut Vec<Pool>, at: usize, part: u64| {
        if parts[at].is_none() {
            parts[at] = Some(part);
            for pool in pools_of(&claims[at]).into_iter().flatten() {
                pools[pool].left = pools[pool].left.saturating_sub(part);
                pools[pool].open -= 1;
            }
        }
    };
    // Who wants least is served first, as long as no rate is used up before.
    let mut modest: Vec<usize> = (0..claims.len()).collect();
    modest.sort_unstable_by_key(|&at| wants[at]);
    let mut modest = modest.into_iter().peekable();
    // A level never falls, as whoever is settled got no more than it: an old one is no more than the true one.
    let mut levels: BinaryHeap<Reverse<(u64, usize)>> = pools
        .iter()
        .enumerate()
        .filter_map(|(at, pool)| Some(Reverse((pool.level()?, at))))
        .collect();
    while let Some(Reverse((known, pool))) = levels.pop() {
        let Some(level) = pools[pool].level() else { continue };
        if level > known {
            levels.push(Reverse((level, pool)));
            continue;
        }
        match modest.next_if(|&at| wants[at] <= level) {
            Some(at) => {
                settle(&mut pools, at, wants[at]);
                levels.push(Reverse((level, pool)));
            }
            None => {
                for at in std::mem::take(&mut pools[pool].members) {
                    settle(&mut pools, at, level);
                }
            }
        }
    }
    let parts = claims.iter().zip(parts);
    parts.filter_map(|(claim, part)| Some((claim.row, Rate::new(part?.max(1))?))).collect()
}

/// What a transfer keeps of a common rate even when it takes less: raising a very low rate takes the
/// kernel long. All together it is an eighth of the whole at the most.
pub fn floor(total: Rate, transfers: usize) -> u64 {
    let total = total.per_second();
    (total / 20).min(total / (8 * (transfers.max(1) as u64))).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::transfers::{KINDS, Shared};

    const ALL: u64 = u64::MAX;

    fn rate(per_second: u64) -> Rate {
        Rate::new(per_second).unwrap()
    }

    /// A claim to rates that are given by name and size.
    fn claim(at: usize, wants: u64, shares: &[(u64, u64)]) -> Claim {
        let mut places = [None; KINDS];
        for (place, &(name, size)) in places.iter_mut().zip(shares) {
            *place = Some(Shared { name, rate: rate(size) });
        }
        Claim { row: Row::at(at), shares: places, wants, most: ALL }
    }

    fn parts(claims: &[Claim]) -> Vec<u64> {
        let parts = divide(claims);
        claims.iter().map(|claim| parts[&claim.row].per_second()).collect()
    }

    #[test]
    fn who_wants_little_gets_it_and_the_rest_is_shared() {
        let of = |wants: &[u64]| {
            let claims =
                wants.iter().enumerate().map(|(at, &wants)| claim(at, wants, &[(7, 1000)]));
            parts(&claims.collect::<Vec<_>>())
        };
        assert_eq!(of(&[ALL, 100, ALL]), [450, 100, 450]);
        assert_eq!(of(&[ALL; 3]), [333; 3]);
        assert_eq!(of(&[200, 300]), [200, 300]);
        assert_eq!(of(&[0, ALL]), [50, 950], "nobody is given less than the floor");
        assert!(divide(&[]).is_empty());
    }

    #[test]
    fn what_one_rate_does_not_let_somebody_take_goes_to_the_others() {
        // The whole is 1200; a client with three connections has 300, four others may have 300 each.
        let of = |client, at| claim(at, ALL, &[(1, 1200), (client, 300)]);
        let claims: Vec<Claim> =
            [2, 2, 2, 3, 4, 5, 6].into_iter().zip(0..).map(|(client, at)| of(client, at)).collect();
        assert_eq!(parts(&claims), [100, 100, 100, 225, 225, 225, 225]);
    }

    #[test]
    fn an_own_rate_bounds_a_part_and_of_two_sizes_the_lesser_holds() {
        let mut claims = [claim(0, ALL, &[(1, 1000)]), claim(1, ALL, &[(1, 600)])];
        assert_eq!(parts(&claims), [300, 300]);
        claims[0].most = 10;
        assert_eq!(parts(&claims), [10, 590]);
    }

    #[test]
    fn more_claims_than_bytes_get_one_each() {
        let claims: Vec<Claim> = (0..5).map(|at| claim(at, ALL, &[(1, 3)])).collect();
        assert_eq!(parts(&claims), [1; 5]);
    }

    prop_compose! {
        fn any_claims()(rates in prop::collection::vec(1000u64..1 << 40, 6),
                        members in prop::collection::vec((0u64..1 << 40, any::<bool>(), 0usize..3, 3usize..7), 1..40)) -> Vec<Claim> {
            members.iter().enumerate().map(|(at, &(wants, all, one, other))| {
                let wants = if all { ALL } else { wants };
                let mut shares = vec![(one as u64 + 1, rates[one])];
                if other < 6 {
                    shares.push((other as u64 + 1, rates[other]));
                }
                claim(at, wants, &shares)
            }).collect()
        }
    }

    proptest! {
        /// The definition: nobody could have more without somebody who has no more having less.
        #[test]
        fn a_division_is_fair_and_whole(claims in any_claims()) {
            let parts = parts(&claims);
            let count = claims.len() as u64;
            let members = |name: u64| {
                claims.iter().zip(&parts)
                    .filter(move |(claim, _)| claim.shares.iter().flatten().any(|shared| shared.name == name))
                    .map(|(_, &part)| part)
            };
            for (claim, &part) in claims.iter().zip(&parts) {
                let shares: Vec<Shared> = claim.shares.iter().flatten().copied().collect();
                let least = shares.iter().map(|shared| floor(shared.rate, members(shared.name).count())).min().unwrap();
                let wants = claim.wants.max(least);
                prop_assert!(part <= wants);
                for shared in &shares {
                    prop_assert!(members(shared.name).sum::<u64>() <= shared.rate.per_second());
                }
                let is_held = shares.iter().any(|shared| {
                    let used: u64 = members(shared.name).sum();
                    let most = members(shared.name).max().unwrap_or(0);
                    used + count >= shared.rate.per_second() && part + count >= most
                });
                prop_assert!(part == wants || is_held, "{part} of {wants}");
            }
        }

        #[test]
        fn floors_never_take_more_than_an_eighth(total in 4u64..1 << 40, transfers in 1usize..1000) {
            prop_assume!(total >= 8 * transfers as u64);
            prop_assert!(floor(rate(total), transfers) * transfers as u64 <= total / 8);
        }
    }
}

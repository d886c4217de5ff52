mod basics;
mod crash;
mod hostile;
pub(in crate::ledger) mod interrupt;
mod world;

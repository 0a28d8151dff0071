// SPDX-License-Identifier: Apache-2.0
//! From router choices to rows grouped by expert.
//!
//! A *slot* is a (token, k) pair: `slot = token * top_k + k`. A *row* is its place after grouping: rows of local
//! expert 0 first, each expert's rows in ascending slot order (so grouping is stable), each expert's group starting
//! at a multiple of `alignment` (128 where scales are swizzled in 128-row tiles, 1 on the CPU). No slot is dropped
//! under any skew.

use crate::error::Result;
use crate::memory::filled;

/// Which experts are here, and under which local id.
#[derive(Debug, Clone, Copy)]
pub struct Placement<'a> {
    /// Experts of the whole layer: valid ids are `0..num_experts`.
    pub num_experts: usize,
    /// Experts here: valid local ids are `0..num_local_experts`.
    pub num_local_experts: usize,
    /// Global id of local expert 0, where there is no map.
    pub first_local_expert: usize,
    /// `[num_experts]`, global to local id, -1 = not here.
    pub expert_map: Option<&'a [i32]>,
}

/// What an id means on this rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Served by this local expert.
    Local(usize),
    /// Padding (-1), or an expert of another rank.
    Elsewhere,
    /// No expert at all: unrouted, and counted.
    OutOfRange,
}

impl Placement<'_> {
    /// The local expert that serves an id.
    ///
    /// Ids are data: padding tokens carry -1, and a buggy router may carry anything, so both ends are bounded
    /// before `expert_map` is read, and what the map says is bounded again.
    pub fn target(&self, id: i64) -> Target {
        if id == -1 {
            return Target::Elsewhere;
        }
        let Some(id) = usize::try_from(id).ok().filter(|id| *id < self.num_experts) else {
            return Target::OutOfRange;
        };
        match self.expert_map {
            None => match id.checked_sub(self.first_local_expert) {
                Some(local) if local < self.num_local_experts => Target::Local(local),
                _ => Target::Elsewhere,
            },
            Some(map) => match map[id] {
                -1 => Target::Elsewhere,
                local if local >= 0 && (local as usize) < self.num_local_experts => Target::Local(local as usize),
                _ => Target::OutOfRange,
            },
        }
    }
}

/// The tables that routing fills.
#[derive(Debug)]
pub struct Routing<'a> {
    /// `[num_slots]`: row of a slot, -1 = unrouted.
    pub slot_to_row: &'a mut [i32],
    /// `[max_rows(..)]`: slot of a row, -1 = padding.
    pub row_to_slot: &'a mut [i32],
    /// `[num_local_experts + 1]`: first row of each expert's group; the last is the number of rows in use.
    pub padded_row_offsets: &'a mut [i32],
}

/// The memory of the tables. Never a workspace's: whoever else writes that may spoil numbers, but no index.
#[derive(Debug)]
pub struct Tables {
    slot_to_row: Vec<i32>,
    row_to_slot: Vec<i32>,
    padded_row_offsets: Vec<i32>,
}

impl Tables {
    /// For up to so many slots.
    pub fn new(num_slots: usize, num_local_experts: usize, alignment: usize) -> Result<Self> {
        Ok(Tables {
            slot_to_row: filled("slots", num_slots, -1)?,
            row_to_slot: filled("rows", max_rows(num_slots, num_local_experts, alignment), -1)?,
            padded_row_offsets: filled("num_local_experts + 1", num_local_experts + 1, 0)?,
        })
    }

    /// The tables of a chunk with so many slots.
    pub fn of_slots(&mut self, num_slots: usize, alignment: usize) -> Routing<'_> {
        let rows = max_rows(num_slots, self.padded_row_offsets.len() - 1, alignment);
        Routing {
            slot_to_row: &mut self.slot_to_row[..num_slots],
            row_to_slot: &mut self.row_to_slot[..rows],
            padded_row_offsets: &mut self.padded_row_offsets,
        }
    }
}

/// Slots that named no expert.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutOfRange {
    /// How many.
    pub count: u64,
    /// The first such slot.
    pub first_slot: Option<usize>,
}

/// Rows that any routing of `num_slots` slots fits into: every group may end in up to `alignment - 1` padding rows.
pub fn max_rows(num_slots: usize, num_local_experts: usize, alignment: usize) -> usize {
    let groups = num_local_experts.min(num_slots);
    (num_slots + groups * (alignment - 1)) / alignment * alignment
}

/// Group slots by expert: count, prefix sum, place.
pub fn route(
    placement: Placement,
    num_slots: usize,
    id_of_slot: impl Fn(usize) -> i64,
    alignment: usize,
    tables: &mut Routing,
) -> OutOfRange {
    let offsets = &mut *tables.padded_row_offsets;
    let mut out_of_range = OutOfRange::default();

    // Count into offsets[expert + 1]; slot_to_row keeps the expert until rows are known.
    offsets.fill(0);
    for (slot, entry) in tables.slot_to_row[..num_slots].iter_mut().enumerate() {
        *entry = match placement.target(id_of_slot(slot)) {
            Target::Local(expert) => {
                offsets[expert + 1] += 1;
                expert as i32
            }
            Target::Elsewhere => -1,
            Target::OutOfRange => {
                out_of_range.count += 1;
                out_of_range.first_slot.get_or_insert(slot);
                -1
            }
        };
    }
    // Prefix sum, shifted by one: offsets[e + 1] becomes the first free row of expert e.
    let mut start = 0;
    for entry in offsets[1..].iter_mut() {
        let count = std::mem::replace(entry, start);
        start += (count as usize).next_multiple_of(alignment) as i32;
    }
    // Place; each expert's cursor ends at its last row, and rounding that up gives the next group's start.
    tables.row_to_slot.fill(-1);
    for (slot, entry) in tables.slot_to_row[..num_slots].iter_mut().enumerate() {
        if *entry >= 0 {
            let cursor = &mut offsets[*entry as usize + 1];
            tables.row_to_slot[*cursor as usize] = slot as i32;
            *entry = *cursor;
            *cursor += 1;
        }
    }
    for entry in offsets[1..].iter_mut() {
        *entry = (*entry as usize).next_multiple_of(alignment) as i32;
    }
    out_of_range
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator, so that a million cases stay quick and repeatable (Marsaglia's xorshift64).
    struct Random(u64);

    impl Random {
        fn below(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % n
        }
    }

    #[test]
    fn a_million_random_routings_equal_the_naive_oracle() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for case in 0..1_000_000 {
            let num_experts = 1 + random.below(12) as usize;
            let num_local_experts = 1 + random.below(num_experts as u64) as usize;
            let first_local_expert = random.below((num_experts - num_local_experts + 1) as u64) as usize;
            let alignment = [1, 4, 128][random.below(3) as usize];
            let num_slots = random.below(24) as usize;
            let hostile = [i64::MIN, i64::from(i32::MIN), -2, -1, num_experts as i64, i64::from(i32::MAX), i64::MAX];
            let skew = random.below(4);
            let ids: Vec<i64> = (0..num_slots)
                .map(|_| match (skew, random.below(8)) {
                    (0, _) => 0,
                    (_, 0) => hostile[random.below(7) as usize],
                    _ => random.below(num_experts as u64) as i64,
                })
                .collect();
            let map: Vec<i32> = (0..num_experts)
                .map(|_| random.below(num_local_experts as u64 + 3) as i32 - 2) // -2 and L are hostile entries
                .collect();
            let expert_map = (case % 2 == 0).then_some(map.as_slice());
            let placement = Placement { num_experts, num_local_experts, first_local_expert, expert_map };

            let (mut slot_to_row, mut offsets) = (vec![77; num_slots], vec![77; num_local_experts + 1]);
            let mut row_to_slot = vec![77; max_rows(num_slots, num_local_experts, alignment)];
            let mut tables = Routing {
                slot_to_row: &mut slot_to_row,
                row_to_slot: &mut row_to_slot,
                padded_row_offsets: &mut offsets,
            };
            let seen = route(placement, num_slots, |slot| ids[slot], alignment, &mut tables);

            // The oracle: for each expert in turn, its slots in order, then padding.
            let (mut rows, mut starts, mut bad) = (Vec::new(), vec![0], 0);
            for expert in 0..num_local_experts as i32 {
                for (slot, id) in ids.iter().enumerate() {
                    let valid = (0..num_experts as i64).contains(id);
                    let local = match expert_map {
                        _ if !valid => -1,
                        Some(map) => map[*id as usize],
                        None => *id as i32 - first_local_expert as i32,
                    };
                    if valid && local == expert {
                        rows.push(slot as i32);
                    }
                    let bad_entry = valid && expert_map.is_some() && !(-1..num_local_experts as i32).contains(&local);
                    bad += u64::from(expert == 0 && (bad_entry || (!valid && *id != -1)));
                }
                while !rows.len().is_multiple_of(alignment) {
                    rows.push(-1);
                }
                starts.push(rows.len() as i32);
            }
            assert_eq!(seen.count, bad, "case {case}");
            assert_eq!(offsets, starts, "case {case}");
            assert!(rows.len() <= row_to_slot.len(), "case {case}: max_rows is too small");
            rows.resize(row_to_slot.len(), -1);
            assert_eq!(row_to_slot, rows, "case {case}");
            for (slot, row) in slot_to_row.iter().enumerate() {
                assert_eq!(*row, rows.iter().position(|s| *s == slot as i32).map_or(-1, |r| r as i32), "case {case}");
            }
        }
    }
}

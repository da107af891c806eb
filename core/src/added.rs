//! What an adapter adds, where matrices are read.

use crate::{
    adapter::Adapter,
    error::Result,
    parts::{
        linear::{Experts, Matrix},
        low_rank::LowRank,
    },
    weights::Scope,
};

/// The shapes of the two factors, by their rank.
type Shapes = dyn Fn(i32) -> [Vec<i32>; 2];

fn projection([output, input]: [i32; 2]) -> impl Fn(i32) -> [Vec<i32>; 2] {
    move |rank| [vec![input, rank], vec![rank, output]]
}

impl Scope {
    /// What the adapter adds to the matrix `[output, input]` here.
    pub(crate) fn added(&self, matrix: &Matrix, sizes: [i32; 2]) -> Result<Option<LowRank>> {
        let Some(added) = self.product("", &projection(sizes))? else { return Ok(None) };
        Ok(Some(self.keep_added(self.lengthened(added, matrix, sizes[0])?)))
    }

    /// As [`Scope::added`], to each of the matrices that are read from one, as [`Scope::fused_by_group`]
    /// does. The adapter, too, may have factors for all of them or for each.
    pub(crate) fn added_to_parts<const N: usize>(
        &self,
        matrix: &Matrix,
        input: i32,
        groups: i32,
        outputs: [i32; N],
    ) -> Result<Vec<Option<LowRank>>> {
        let total = groups * outputs.iter().sum::<i32>();
        let Some(all) = self.product("", &projection([total, input]))? else {
            let part = |(i, output)| {
                let added = self.product(&format!(".{i}"), &projection([output, input]))?;
                Ok(added.map(|added| self.keep_added(added)))
            };
            return outputs.into_iter().enumerate().map(part).collect();
        };
        let all = self.lengthened(all, matrix, total)?;
        let mut start = 0;
        let part = |output| {
            let from = start;
            start += output;
            Ok(Some(self.keep_rows(all.rows(groups, from, start)?)))
        };
        self.keep(all.a.clone());
        outputs.into_iter().map(part).collect()
    }

    /// What the adapter adds to the table `[vocabulary, width]` here, and to a head that is tied to it.
    pub(crate) fn added_to_table(
        &self,
        table: &Matrix,
        [vocabulary, width]: [i32; 2],
    ) -> Result<[Option<LowRank>; 2]> {
        let shapes = move |rank| [vec![vocabulary, rank], vec![rank, width]];
        let Some(LowRank { a, b, scale, stretch }) = self.product("", &shapes)? else {
            return Ok([None, None]);
        };
        let added = LowRank { a: b.t(), b: a.t(), scale, stretch };
        let added = self.keep_added(self.lengthened(added, table, vocabulary)?);
        let to_head = self.adapter().is_some_and(Adapter::adds_to_tied_head);
        Ok([Some(added.clone()), to_head.then_some(added)])
    }

    /// What the adapter adds to the matrices `[count, output, input]` of experts here. It has factors
    /// for all of them, or for each under a name of its own.
    pub(crate) fn added_to_experts(
        &self,
        each: impl Fn(i32) -> Scope,
        [count, input, output]: [i32; 3],
    ) -> Result<Option<LowRank>> {
        let Some(adapter) = self.adapter() else { return Ok(None) };
        let shapes = move |rank| [vec![count, rank, input], vec![count, output, rank]];
        let added = match self.product("", &shapes)? {
            Some(added) => {
                let (a, b) = (added.a.swap_axes(-1, -2)?, added.b.swap_axes(-1, -2)?);
                LowRank { a, b, ..added }
            }
            None => {
                let factors = |i| each(i).product("", &projection([output, input]));
                let factors = (0..count).map(factors).collect::<Result<Vec<_>>>()?;
                if factors.iter().all(Option::is_none) {
                    return Ok(None);
                }
                let missing = |i| adapter.missing(&each(i).full_name("lora_a"));
                let factors = (0..).zip(factors).map(|(i, one)| one.ok_or_else(|| missing(i)));
                LowRank::stack(&factors.collect::<Result<Vec<_>>>()?)?
            }
        };
        if adapter.has_lengths() {
            let name = self.full_name("lora_a");
            return Err(adapter.wrong(format!("`{name}`: experts with lengths are not supported")));
        }
        Ok(Some(self.keep_added(added.for_experts()?)))
    }

    /// With what the adapter adds to experts here under the name that they have in a stack, if it
    /// knows them by that.
    pub(crate) fn adapted_experts(
        &self,
        experts: Experts,
        name: &str,
        sizes: [i32; 3],
    ) -> Result<Experts> {
        let stack = self.at("experts");
        let added = stack.at(name).added_to_experts(|i| stack.at(i).at(name), sizes)?;
        Ok(if added.is_some() { experts.adapted(added) } else { experts })
    }

    /// The factors of a product as the file has them.
    fn product(&self, part: &str, shapes: &Shapes) -> Result<Option<LowRank>> {
        let Some(adapter) = self.adapter() else { return Ok(None) };
        let Some(product) = adapter.product else { return Ok(None) };
        let names = ["lora_a", "lora_b"].map(|factor| self.full_name(&format!("{factor}{part}")));
        let [a, b] = shapes(product.rank);
        match (adapter.take(&names[0], &a)?, adapter.take(&names[1], &b)?) {
            (None, None) => Ok(None),
            (Some(a), Some(b)) => Ok(Some(LowRank { a, b, scale: product.scale, stretch: None })),
            (a, _) => Err(adapter.missing(&names[usize::from(a.is_some())])),
        }
    }

    /// With the lengths of rows, where the adapter is one that has them.
    fn lengthened(&self, added: LowRank, matrix: &Matrix, output: i32) -> Result<LowRank> {
        let Some(adapter) = self.adapter().filter(|adapter| adapter.has_lengths()) else {
            return Ok(added);
        };
        let name = self.full_name("m");
        let lengths = adapter.take(&name, &[output])?.ok_or_else(|| adapter.missing(&name))?;
        added.with_lengths(matrix, &lengths)
    }

    fn keep_added(&self, added: LowRank) -> LowRank {
        self.keep(added.a.clone());
        self.keep_rows(added)
    }

    fn keep_rows(&self, added: LowRank) -> LowRank {
        for array in [Some(&added.b), added.stretch.as_ref()].into_iter().flatten() {
            self.keep(array.clone());
        }
        added
    }
}

//! Golden files: reading them, and comparing with them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(missing_docs, unreachable_pub, reason = "seen by one test alone")]

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::{Array2, ArrayD, Ix2};
use serde_json::Value;
use toml::Table;

/// Of the largest magnitude of a tensor: sums here and there run in another order.
const RELATIVE: f32 = 1e-5;

/// One golden case.
pub struct Case {
    pub name: String,
    pub params: Value,
    pub floats: BTreeMap<String, ArrayD<f32>>,
    pub ints: BTreeMap<String, Vec<i64>>,
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// `out.*` tensors that were compared.
    pub seen: std::cell::RefCell<Vec<String>>,
}

impl Case {
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let doc: Value = serde_json::from_str(&text).unwrap();
        let bytes = std::fs::read(path.with_extension("safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let (mut floats, mut ints) = (BTreeMap::new(), BTreeMap::new());
        let mut shapes = BTreeMap::new();
        for (name, view) in file.tensors() {
            let data = view.data();
            shapes.insert(name.clone(), view.shape().to_vec());
            match view.dtype() {
                safetensors::Dtype::F32 => {
                    let values: Vec<f32> = data
                        .chunks_exact(4)
                        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                        .collect();
                    floats.insert(name, ArrayD::from_shape_vec(view.shape(), values).unwrap());
                }
                safetensors::Dtype::I64 => {
                    let values = data
                        .chunks_exact(8)
                        .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
                        .collect();
                    ints.insert(name, values);
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        let name = format!(
            "{}/{}",
            doc["pruner"].as_str().unwrap(),
            path.file_stem().unwrap().to_str().unwrap()
        );
        Self { name, params: doc["params"].clone(), floats, ints, shapes, seen: Default::default() }
    }

    pub fn input(&self, name: &str) -> &ArrayD<f32> {
        self.floats.get(&format!("in.{name}")).unwrap_or_else(|| panic!("{}: in.{name}", self.name))
    }

    pub fn has(&self, name: &str) -> bool {
        self.floats.contains_key(name) || self.ints.contains_key(name)
    }

    pub fn matrix(&self, name: &str) -> Array2<f32> {
        self.input(name).clone().into_dimensionality::<Ix2>().unwrap()
    }

    pub fn int(&self, name: &str) -> usize {
        self.params[name].as_u64().unwrap_or_else(|| panic!("{}: {name}", self.name)) as usize
    }

    pub fn ints_of(&self, name: &str) -> Vec<usize> {
        let list = self.params[name].as_array().unwrap();
        list.iter().map(|v| v.as_u64().unwrap() as usize).collect()
    }

    /// Compares numbers with `out.<name>`.
    pub fn close(&self, name: &str, got: &[f32]) {
        let name = format!("out.{name}");
        let want = self.floats.get(&name).unwrap_or_else(|| panic!("{}: {name}", self.name));
        self.seen.borrow_mut().push(name.clone());
        let want: Vec<f32> = want.iter().copied().collect();
        assert_eq!(got.len(), want.len(), "{}: length of {name}", self.name);
        let scale = want.iter().fold(0.0f32, |m, w| m.max(w.abs()));
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            assert!(
                (g - w).abs() <= RELATIVE * scale,
                "{}: {name}[{i}] is {g}, not {w}",
                self.name
            );
        }
    }

    /// Compares indices with `out.<name>`.
    pub fn equal<T: Copy + TryInto<i64>>(&self, name: &str, got: &[T]) {
        let name = format!("out.{name}");
        self.seen.borrow_mut().push(name.clone());
        let got: Vec<i64> = got.iter().map(|&g| g.try_into().ok().unwrap()).collect();
        assert_eq!(Some(&got), self.ints.get(&name), "{}: {name}", self.name);
    }

    /// Compares indices with `out.<name>` where tokens with equal rows of `features` stand for one
    /// another.
    pub fn equal_up_to_copies(&self, name: &str, got: &[i64], features: &Array2<f32>, shift: i64) {
        let name = format!("out.{name}");
        self.seen.borrow_mut().push(name.clone());
        let first = |i: i64| {
            let row = |j: usize| features.rows().into_iter().nth(j).map(|r| r.to_vec());
            let own = usize::try_from(i - shift).ok().and_then(row);
            let copies = (0..features.nrows()).find(|&j| own.is_some() && row(j) == own);
            copies.map_or(i, |j| j as i64 + shift)
        };
        let sorted = |list: &[i64]| {
            let mut list: Vec<i64> = list.iter().map(|&i| first(i)).collect();
            list.sort_unstable();
            list
        };
        assert_eq!(sorted(got), sorted(&self.ints[&name]), "{}: {name}", self.name);
    }

    /// The parameters `keys` as those of a chain entry.
    pub fn table(&self, keys: &[&str]) -> Table {
        let text = serde_json::to_string(&self.params).unwrap();
        let all: Table = serde_json::from_str(&text).unwrap();
        all.into_iter().filter(|(key, _)| keys.contains(&key.as_str())).collect()
    }
}

//! The vision configuration: what families and reports need to know of a tower. The tower itself
//! reads the same object again, in full.

use secateur_core::error::ConfigError;
use secateur_core::files::{Fields, short};
use secateur_core::model::{EncoderInfo, SignalKind, Withheld};
use serde_json::Value;

use super::{MAX_HEADS, MAX_LAYERS, MAX_WIDTH};

/// Sizes of a tower with learnt positions on a fixed square picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vision {
    /// Width of a row.
    pub(crate) width: usize,
    /// Layers in the file.
    pub(crate) layers: usize,
    /// Attention heads.
    pub(crate) heads: usize,
    /// Side of the picture, pixels.
    pub(crate) image: usize,
    /// Side of a patch, pixels.
    pub(crate) patch: usize,
    /// Whether row 0 is a class token.
    pub(crate) cls: bool,
    /// Whether the configuration promises SigLIP's pooling head.
    pub(crate) pooling_head: bool,
}

impl Vision {
    /// Patches along a side.
    pub(crate) fn side(&self) -> usize {
        self.image / self.patch
    }

    fn withheld(&self, features: &FeatureLayers) -> Vec<Withheld> {
        let reason = if !self.pooling_head {
            "the configuration names no pooling head (`vision_use_head`)".to_owned()
        } else if features.run != self.layers {
            format!(
                "the pooling head reads the last of {} tower layers, the features need only {}",
                self.layers, features.run
            )
        } else {
            return Vec::new();
        };
        vec![Withheld::all(SignalKind::PoolingAttention, reason)]
    }

    /// What reports and chains are told.
    pub(crate) fn info(&self, kind: &str, features: &FeatureLayers) -> EncoderInfo {
        EncoderInfo {
            tower: kind.to_owned(),
            layers: features.run,
            file_layers: self.layers,
            heads: self.heads,
            width: self.width * features.layers.len(),
            cls: self.cls,
            full_attention_layers: (0..features.run).collect(),
            withheld: self.withheld(features),
        }
    }
}

/// What most classes say where a file is silent.
const BASE: Vision = Vision {
    width: 768,
    layers: 12,
    heads: 12,
    image: 224,
    patch: 32,
    cls: false,
    pooling_head: false,
};
const IDEFICS: Vision = Vision { width: 1152, heads: 16, ..BASE };

/// Class defaults of a tower.
const CLASSES: &[(&str, Vision)] = &[
    ("clip_vision_model", Vision { cls: true, ..BASE }),
    ("siglip_vision_model", Vision { patch: 16, pooling_head: true, ..BASE }),
    (
        "internvl_vision",
        Vision { width: 1024, layers: 24, heads: 16, image: 448, patch: 14, cls: true, ..BASE },
    ),
    ("smolvlm_vision", IDEFICS),
    ("idefics3_vision", IDEFICS),
];

/// Reads the sizes of a tower of class `kind`.
///
/// # Errors
/// A field that cannot be, or a class that is not known.
pub(crate) fn vision(fields: &Fields<'_>, kind: &str) -> Result<Vision, ConfigError> {
    let default =
        CLASSES.iter().find(|(name, _)| *name == kind).map(|(_, v)| v).ok_or_else(|| {
            ConfigError::Unsupported {
                file: fields.file().to_owned(),
                what: "vision tower",
                found: kind.to_owned(),
                supported: CLASSES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
            }
        })?;
    let vision = Vision {
        width: fields.size("hidden_size", 1..=MAX_WIDTH, Some(default.width))?,
        layers: fields.size("num_hidden_layers", 1..=MAX_LAYERS, Some(default.layers))?,
        heads: fields.size("num_attention_heads", 1..=MAX_HEADS, Some(default.heads))?,
        image: int_or_pair(fields, "image_size", 1..=1 << 15, default.image)?,
        patch: int_or_pair(fields, "patch_size", 1..=1 << 12, default.patch)?,
        cls: default.cls,
        pooling_head: default.pooling_head && fields.flag("vision_use_head", true)?,
    };
    if !vision.width.is_multiple_of(vision.heads) {
        let expected = format!("a divisor of `hidden_size` {}", vision.width);
        return Err(fields.error("num_attention_heads", &expected, &vision.heads.to_string()));
    }
    if vision.patch > vision.image {
        let expected = format!("at most `image_size` {}", vision.image);
        return Err(fields.error("patch_size", &expected, &vision.patch.to_string()));
    }
    Ok(vision)
}

/// A whole number, or a pair of equal ones.
pub(crate) fn int_or_pair(
    fields: &Fields<'_>,
    key: &str,
    range: std::ops::RangeInclusive<usize>,
    default: usize,
) -> Result<usize, ConfigError> {
    let number =
        |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n));
    match fields.get(key) {
        Some(value @ Value::Array(pair)) => match pair.as_slice() {
            [a, b] if a == b => number(a),
            _ => None,
        }
        .ok_or_else(|| {
            let expected =
                format!("a number from {} to {}, or two equal ones", range.start(), range.end());
            fields.error(key, &expected, &short(value))
        }),
        _ => fields.size(key, range, Some(default)),
    }
}

/// Which hidden states are the features.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FeatureLayers {
    /// As they stand in the file.
    pub(crate) layers: Vec<i64>,
    /// Layers that have to run.
    pub(crate) run: usize,
}

impl FeatureLayers {
    /// The state after the last of `layers` layers.
    pub(crate) fn last(layers: usize) -> Self {
        Self { layers: vec![-1], run: layers }
    }
}

/// Reads a feature layer or a list of them; hidden state `k` is that after `k` of `layers`
/// layers, negative ones count from behind.
///
/// # Errors
/// A layer that the tower does not have.
pub(crate) fn feature_layers(
    fields: &Fields<'_>,
    key: &str,
    default: i64,
    layers: usize,
) -> Result<FeatureLayers, ConfigError> {
    let given = match fields.get(key) {
        None => vec![Some(default)],
        Some(Value::Array(list)) => list.iter().map(Value::as_i64).collect(),
        Some(one) => vec![one.as_i64()],
    };
    let states = layers as i64 + 1;
    let resolve = |layer: i64| {
        let index = if layer < 0 { states + layer } else { layer };
        (0..states).contains(&index).then_some(index as usize)
    };
    let wrong = || {
        let expected = format!("hidden states from -{states} to {layers}, at most 64 of them");
        let found = fields.get(key).map_or_else(|| default.to_string(), short);
        fields.error(key, &expected, &found)
    };
    let list = given.into_iter().collect::<Option<Vec<i64>>>().ok_or_else(wrong)?;
    if list.is_empty() || list.len() > 64 {
        return Err(wrong());
    }
    let indices = list.iter().map(|&l| resolve(l)).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
    let run = indices.into_iter().max().unwrap_or(0);
    Ok(FeatureLayers { layers: list, run })
}

//! config.json and generation_config.json of a Hugging Face folder.

use chrysalis_protocol::package::{Architecture, Generation, Rope};
use serde_json::{Map, Value};

use super::{
    ArchitectureError, Bias, FAMILIES, Family, Window, activation, end_ids, layers, rope,
    set_window,
};

/// The architecture of a model of Hugging Face, from config.json and, where there is one,
/// generation_config.json.
///
/// # Errors
/// [`ArchitectureError`] names the field that is missing, wrong or not supported.
pub fn from_hugging_face(
    config: &Value,
    generation: Option<&Value>,
) -> Result<Architecture, ArchitectureError> {
    let (family, fields) = text_config(config)?;
    refuse_unsupported(&Fields::new(config)?)?;
    refuse_unsupported(&fields)?;
    has_fp8_blocks(config)?;
    let mut architecture = shape(family, &fields)?;
    let (global, local) = ropes(family, &fields, &architecture)?;
    architecture.rope_global = global;
    window(family, &fields, local, &mut architecture)?;
    let outer = Fields::new(config)?;
    let generation = generation.map(Fields::new).transpose()?;
    architecture.generation = sampling(&outer, &fields, generation.as_ref())?;
    Ok(architecture)
}

/// The family of a config.json, and the part of it that describes the decoder.
pub(super) fn text_config(
    config: &Value,
) -> Result<(&'static Family, Fields<'_>), ArchitectureError> {
    let family = family(config)?;
    let fields = Fields::new(config)?;
    Ok((family, fields.object("text_config")?.unwrap_or(fields)))
}

/// The row of the table that config.json names.
pub(crate) fn family(config: &Value) -> Result<&'static Family, ArchitectureError> {
    let named = config.get("architectures").and_then(Value::as_array);
    let found = named.and_then(|names| names.first()).and_then(Value::as_str);
    let found = found.ok_or_else(|| ArchitectureError::Missing("architectures".to_owned()))?;
    FAMILIES
        .iter()
        .find(|family| family.hugging_face.contains(&found))
        .ok_or_else(|| ArchitectureError::Unknown { found: found.to_owned() })
}

/// Whether weights may be in fp8: E4M3 with a scale for each block of 128 by 128, which is the only quantisation that is read.
pub(crate) fn has_fp8_blocks(config: &Value) -> Result<bool, ArchitectureError> {
    let (_, inner) = text_config(config)?;
    let mut found = false;
    for fields in [Fields::new(config)?, inner] {
        let Some(fields) = fields.object("quantization_config")? else { continue };
        // How activations are rounded before products, if at all, is the device's matter; fixed scales would be part of the model.
        for (name, known) in
            [("quant_method", "fp8"), ("fmt", "e4m3"), ("activation_scheme", "dynamic")]
        {
            let said = fields.text(name)?;
            if name == "quant_method" && said.is_none() {
                return Err(ArchitectureError::Missing(fields.path(name)));
            }
            if let Some(other) = said.filter(|said| *said != known) {
                let (field, found) = (fields.path(name), other.to_owned());
                return Err(ArchitectureError::Unsupported { field, found });
            }
        }
        let field = fields.path("weight_block_size");
        match fields.ids("weight_block_size")? {
            Some(block) if block == [128, 128] => found = true,
            Some(block) => {
                let found = format!("{block:?}");
                return Err(ArchitectureError::Unsupported { field, found });
            }
            None => return Err(ArchitectureError::Missing(field)),
        }
    }
    Ok(found)
}

/// What would change the numbers and is not known to the decoder.
fn refuse_unsupported(fields: &Fields<'_>) -> Result<(), ArchitectureError> {
    for name in ["num_local_experts", "use_bidirectional_attention"] {
        if let Some(value) = fields.get(name).filter(|value| **value != Value::Bool(false)) {
            let found = describe(value);
            return Err(ArchitectureError::Unsupported { field: fields.path(name), found });
        }
    }
    Ok(())
}

/// Everything but rotary embeddings, windows and sampling.
fn shape(family: &Family, fields: &Fields<'_>) -> Result<Architecture, ArchitectureError> {
    let defaults = &family.defaults;
    let or_default = |name: &str, default: Option<u32>| {
        fields.u32(name)?.or(default).ok_or_else(|| ArchitectureError::Missing(fields.path(name)))
    };
    let hidden_size = or_default("hidden_size", None)?;
    let num_heads = or_default("num_attention_heads", defaults.num_heads)?;
    let num_kv_heads =
        or_default("num_key_value_heads", Some(defaults.num_kv_heads.unwrap_or(num_heads)))?;
    let head_dim = match fields.u32("head_dim")?.or(defaults.head_dim) {
        Some(head_dim) => head_dim,
        None => whole_quotient(&fields.path("hidden_size"), hidden_size, num_heads)?,
    };
    let said = |name: &str| Ok::<_, ArchitectureError>(fields.bool(name)?.unwrap_or(false));
    let all_biased = family.bias == Bias::AsSaid && said("attention_bias")?;
    let act_field =
        if fields.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    let act = fields.text(act_field)?.unwrap_or(defaults.activation);
    let pre_scalar = fields.f32("query_pre_attn_scalar")?;
    let pre_scalar = defaults.query_pre_attn_scalar.map(|default| pre_scalar.unwrap_or(default));
    // An explicit null means none.
    let softcap = |name: &str, default: f32| {
        let default = if fields.says_nothing(name) { default } else { 0.0 };
        Ok::<_, ArchitectureError>(fields.f32(name)?.unwrap_or(default))
    };
    let num_layers = fields.u32("num_hidden_layers")?;
    let num_layers =
        num_layers.ok_or_else(|| ArchitectureError::Missing(fields.path("num_hidden_layers")))?;
    Ok(Architecture {
        hidden_size,
        intermediate_size: or_default("intermediate_size", None)?,
        num_layers: layers(&fields.path("num_hidden_layers"), num_layers)?,
        num_heads,
        num_kv_heads,
        head_dim,
        vocab_size: or_default("vocab_size", defaults.vocab_size)?,
        max_position_embeddings: or_default(
            "max_position_embeddings",
            defaults.max_position_embeddings,
        )?,
        tied_embeddings: fields.bool("tie_word_embeddings")?.unwrap_or(defaults.tied),
        qk_norm: family.qk_norm,
        sandwich_norms: family.sandwich_norms,
        qkv_bias: family.bias == Bias::Qkv || all_biased,
        o_bias: all_biased,
        mlp_bias: family.bias == Bias::AsSaid && said("mlp_bias")?,
        activation: activation(&fields.path(act_field), act)?,
        rms_norm_eps: fields.f32("rms_norm_eps")?.unwrap_or(RMS_NORM_EPS),
        embedding_scale: family.embedding_scale(hidden_size),
        attention_scale: pre_scalar.unwrap_or(head_dim as f32).sqrt().recip(),
        attn_logit_softcap: softcap("attn_logit_softcapping", defaults.attn_logit_softcap)?,
        final_logit_softcap: softcap("final_logit_softcapping", defaults.final_logit_softcap)?,
        sliding_window: 0,
        sliding_layers: [0; 8],
        rope_global: rope::plain(defaults.theta, head_dim),
        rope_local: Rope::default(),
        generation: neutral(None, Vec::new()),
    })
}

/// The rotary embeddings of full and of sliding layers.
fn ropes(
    family: &Family,
    fields: &Fields<'_>,
    architecture: &Architecture,
) -> Result<(Rope, Rope), ArchitectureError> {
    let max_position = architecture.max_position_embeddings;
    let head_dim = architecture.head_dim;
    let build = |parameters: Option<&Fields<'_>>, theta: Option<f32>, default: f32| {
        let inner = |name| parameters.map_or(Ok(None), |inner: &Fields<'_>| inner.f32(name));
        let theta = inner("rope_theta")?.or(theta).unwrap_or(default);
        let part = inner("partial_rotary_factor")?;
        let part = part.or(fields.f32("partial_rotary_factor")?).unwrap_or(1.0);
        let plain = rope::plain(theta, (head_dim as f32 * part) as u32);
        parameters.map_or(Ok(plain), |inner| rope::scaled(plain, inner, max_position))
    };
    let theta = fields.f32("rope_theta")?;
    let local_theta = fields.f32("rope_local_base_freq")?;
    let parameters = fields.object("rope_parameters")?;
    if let Some(nested) = &parameters
        && let Some(full) = nested.object("full_attention")?
    {
        let global = build(Some(&full), theta, family.defaults.theta)?;
        let sliding = nested.object("sliding_attention")?;
        let default = family.local_theta.unwrap_or(global.theta);
        let local = build(sliding.as_ref(), local_theta, default)?;
        return Ok((global, local));
    }
    let parameters = match parameters {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_scaling")?,
    };
    let global = build(parameters.as_ref(), theta, family.defaults.theta)?;
    let local = match family.local_theta {
        // The scaling is of the full layers alone.
        Some(default) => build(None, local_theta, default)?,
        None => global,
    };
    Ok((global, local))
}

/// Which layers slide, and how far they see.
fn window(
    family: &Family,
    fields: &Fields<'_>,
    local: Rope,
    architecture: &mut Architecture,
) -> Result<(), ArchitectureError> {
    let off = match family.window {
        Window::None => true,
        Window::FromLayer => !fields.bool("use_sliding_window")?.unwrap_or(false),
        Window::All | Window::Pattern(_) => false,
    };
    // An explicit null switches the window off.
    let silent = fields.says_nothing("sliding_window");
    let default = family.defaults.sliding_window.filter(|_| silent);
    let window = fields.u32("sliding_window")?.or(default);
    if off || window.is_none() {
        return Ok(());
    }
    if let Some(types) = fields.texts("layer_types")? {
        let known = ["full_attention", "sliding_attention"];
        if let Some(found) = types.iter().find(|kind| !known.contains(*kind)) {
            let (field, found) = (fields.path("layer_types"), (*found).to_owned());
            return Err(ArchitectureError::Unsupported { field, found });
        }
        if types.len() != architecture.num_layers as usize {
            return Err(ArchitectureError::Field {
                field: fields.path("layer_types"),
                expected: "one for each layer",
                found: format!("a list of {}", types.len()),
            });
        }
        set_window(architecture, window, local, |layer| {
            types.get(layer as usize) == Some(&"sliding_attention")
        });
        return Ok(());
    }
    let first = fields.u32("max_window_layers")?.unwrap_or(MAX_WINDOW_LAYERS);
    let pattern = match fields.u32("sliding_window_pattern")? {
        Some(pattern) => Some(pattern),
        None => fields.u32("_sliding_window_pattern")?,
    };
    set_window(architecture, window, local, |layer| match family.window {
        Window::None => false,
        Window::All => true,
        Window::FromLayer => layer >= first,
        Window::Pattern(default) => {
            let pattern = pattern.unwrap_or(default).max(1);
            !(layer + 1).is_multiple_of(pattern)
        }
    });
    Ok(())
}

/// Special tokens and defaults of sampling: generation_config.json before config.json.
fn sampling(
    outer: &Fields<'_>,
    inner: &Fields<'_>,
    generation: Option<&Fields<'_>>,
) -> Result<Generation, ArchitectureError> {
    let places: Vec<&Fields<'_>> = generation.into_iter().chain([outer, inner]).collect();
    let mut bos = None;
    let mut eos = None;
    for place in &places {
        bos = bos.or(place.u32("bos_token_id")?);
        eos = match eos {
            None => place.ids("eos_token_id")?,
            found => found,
        };
    }
    let mut defaults = neutral(bos, end_ids("eos_token_id", eos.unwrap_or_default())?);
    let Some(generation) = generation else {
        return Ok(defaults);
    };
    defaults.temperature = match (generation.bool("do_sample")?, generation.f32("temperature")?) {
        (Some(false), _) | (None, None) => 0.0,
        (Some(true), None) => 1.0,
        (_, Some(temperature)) => temperature,
    };
    let or = |name: &str, neutral: f32| {
        Ok::<_, ArchitectureError>(generation.f32(name)?.unwrap_or(neutral))
    };
    defaults.top_p = or("top_p", defaults.top_p)?;
    defaults.min_p = or("min_p", defaults.min_p)?;
    defaults.repetition_penalty = or("repetition_penalty", defaults.repetition_penalty)?;
    defaults.top_k = generation.u32("top_k")?.unwrap_or(defaults.top_k);
    Ok(defaults)
}

/// What holds where the source says nothing: greedy, as transformers' `generate` has it, and no cut.
pub(super) const fn neutral(bos_token_id: Option<u32>, eos_token_ids: Vec<u32>) -> Generation {
    Generation {
        bos_token_id,
        eos_token_ids,
        temperature: 0.0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        top_k: 0,
    }
}

/// `value / parts` where that is whole.
pub(super) fn whole_quotient(
    field: &str,
    value: u32,
    parts: u32,
) -> Result<u32, ArchitectureError> {
    if parts > 0 && value.is_multiple_of(parts) {
        return Ok(value / parts);
    }
    let (field, found) = (field.to_owned(), format!("{value} for {parts} heads"));
    Err(ArchitectureError::Field { field, expected: "a multiple of the heads", found })
}

/// The fields of a JSON object, asked for by type; null is as good as absent.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    /// Where the object lies, for messages; ends with a point, or is empty.
    place: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn new(value: &'a Value) -> Result<Self, ArchitectureError> {
        let map = value.as_object().ok_or_else(|| ArchitectureError::Field {
            field: "the configuration".to_owned(),
            expected: "an object",
            found: describe(value),
        })?;
        Ok(Self { place: String::new(), map })
    }

    /// The name of a field with the names of the objects that it lies in.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.place)
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// There is no such field, not even null.
    fn says_nothing(&self, name: &str) -> bool {
        !self.map.contains_key(name)
    }

    fn object(&self, name: &str) -> Result<Option<Self>, ArchitectureError> {
        let place = format!("{}{name}.", self.place);
        let map = self.typed(name, "an object", Value::as_object)?;
        Ok(map.map(|map| Self { place, map }))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, ArchitectureError> {
        self.typed(name, "a string", Value::as_str)
    }

    pub(super) fn bool(&self, name: &str) -> Result<Option<bool>, ArchitectureError> {
        self.typed(name, "a bool", Value::as_bool)
    }

    pub(super) fn u32(&self, name: &str) -> Result<Option<u32>, ArchitectureError> {
        self.typed(name, "an unsigned 32-bit integer", as_u32)
    }

    pub(super) fn f32(&self, name: &str) -> Result<Option<f32>, ArchitectureError> {
        self.typed(name, "a finite number", |value| {
            value.as_f64().map(|number| number as f32).filter(|number| number.is_finite())
        })
    }

    fn texts(&self, name: &str) -> Result<Option<Vec<&'a str>>, ArchitectureError> {
        self.typed(name, "a list of strings", |value| {
            value.as_array()?.iter().map(Value::as_str).collect()
        })
    }

    /// One token id or other number, or a list of them.
    fn ids(&self, name: &str) -> Result<Option<Vec<u32>>, ArchitectureError> {
        self.typed(name, "an unsigned 32-bit integer or a list of them", |value| match value {
            Value::Array(ids) => ids.iter().map(as_u32).collect(),
            id => as_u32(id).map(|id| vec![id]),
        })
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &'static str,
        pick: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ArchitectureError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let wrong = || ArchitectureError::Field {
            field: self.path(name),
            expected,
            found: describe(value),
        };
        pick(value).map(Some).ok_or_else(wrong)
    }
}

/// An integer, also one written with a fraction of zero.
fn as_u32(value: &Value) -> Option<u32> {
    let whole = value.as_u64().or_else(|| {
        value
            .as_f64()
            .filter(|float| *float >= 0.0 && float.fract() == 0.0)
            .map(|float| float as u64)
    });
    whole.and_then(|whole| u32::try_from(whole).ok())
}

/// A value for a message, cut to a line.
fn describe(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}

const RMS_NORM_EPS: f32 = 1e-6;
/// Of Qwen2 and Qwen3.
const MAX_WINDOW_LAYERS: u32 = 28;

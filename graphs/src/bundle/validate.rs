//! What a manifest may say, and that the files it names are there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs;
use std::path::Path;

use super::{
    BundleError, Cascade, ClipInterpolation, FORMAT, LatentUpsampler, Manifest, Part, PortDim, Sampling, WeightFile,
    files,
};

/// Most parts or weight files in a bundle.
const MAX_ENTRIES: usize = 256;
/// Most inputs or outputs of a part, and largest rank of one.
const MAX_PORTS: usize = 64;

impl Manifest {
    /// Checks every range and reference; `path` is named in errors.
    pub(super) fn validate(&self, path: &Path) -> Result<(), BundleError> {
        let check = Check { path };
        check.that(self.format == FORMAT, "format", &FORMAT, &self.format)?;
        check.that(is_name(&self.family), "family", &"a plain name", &format!("{:?}", self.family))?;
        check.range("parts", self.parts.len(), 1..=MAX_ENTRIES)?;
        check.range("weights", self.weights.len(), 0..=MAX_ENTRIES)?;
        for (name, part) in &self.parts {
            part.validate(name, &self.weights, check)?;
        }
        check.range("files", self.files.len(), 0..=MAX_ENTRIES)?;
        for (name, folder, entries) in [("weights", "weights/", &self.weights), ("files", "files/", &self.files)] {
            for (file, described) in entries {
                let key = format!("{name}.{file}");
                let inside = file.strip_prefix(folder).is_some_and(|f| files::is_plain_relative(f) && !f.contains('/'));
                check.that(inside, &key, &format!("a path `{folder}NAME`"), &format!("{file:?}"))?;
                check.digest(&key, &described.blake3)?;
            }
        }
        for (key, text) in [("text", &self.cascade.text), ("temporal_text", &self.cascade.temporal_text)] {
            for file in text.iter().flat_map(|text| [&text.vocabulary, &text.merges]) {
                let key = format!("cascade.{key}");
                check.that(self.files.contains_key(file), &key, &"files listed under `files`", file)?;
            }
        }
        self.provenance.validate(check)?;
        self.optimized.iter().try_for_each(|optimized| optimized.validate(check))?;
        self.cascade.validate(check)
    }
}

impl Part {
    fn validate(&self, name: &str, weights: &BTreeMap<String, WeightFile>, check: Check) -> Result<(), BundleError> {
        let key = |suffix: &str| format!("parts.{name}{suffix}");
        check.that(is_name(name), &key(""), &"a plain name", &format!("{name:?}"))?;
        check.graph_file(&key(".file"), &self.file)?;
        check.digest(&key(""), &self.blake3)?;
        for (suffix, ports) in [(".inputs", &self.inputs), (".outputs", &self.outputs)] {
            check.range(&key(suffix), ports.len(), 0..=MAX_PORTS)?;
            let mut seen = BTreeSet::new();
            for port in ports {
                let key = key(&format!("{suffix}.{}", port.name));
                check.that(
                    is_name(&port.name) && seen.insert(&port.name),
                    &key,
                    &"plain names, each once",
                    &port.name,
                )?;
                check.range(&key, port.shape.len(), 0..=MAX_PORTS)?;
                for dim in &port.shape {
                    check.that(dim.is_valid(), &key, &"positive sizes and symbols such as `4*height`", dim)?;
                }
            }
        }
        for file in &self.weights {
            check.that(weights.contains_key(file), &key(".weights"), &"files listed under `weights`", file)?;
        }
        self.validate_pieces(name, check)
    }
}

impl PortDim {
    fn is_valid(&self) -> bool {
        match self {
            Self::Fixed(size) => (1..=1 << 32).contains(size),
            Self::Symbol(text) => {
                !text.is_empty()
                    && text.len() <= 256
                    && text.chars().all(|c| c.is_ascii_alphanumeric() || "_*/+-() .".contains(c))
            }
        }
    }
}

impl Cascade {
    fn validate(&self, check: Check) -> Result<(), BundleError> {
        let mut seen = BTreeSet::new();
        check.range("cascade.labels", self.labels.len(), 0..=MAX_PORTS)?;
        for label in &self.labels {
            let key = format!("cascade.labels.{}", label.name);
            let fits = is_name(&label.name) && seen.insert(&label.name) && (1..=65_536).contains(&label.classes);
            check.that(fits, &key, &"plain names, each once, with 1..=65536 classes", &label.classes)?;
        }
        self.scheduler
            .validate()
            .map_err(|source| BundleError::Scheduler { path: check.path.to_path_buf(), source })?;
        check.positive("cascade.scaling_factor", self.scaling_factor)?;
        check.positive("cascade.key_fps", self.key_fps)?;
        check.positive("cascade.told_fps", self.told_fps.unwrap_or(self.key_fps))?;
        check.range("cascade.latent_channels", self.latent_channels, 1..=4096)?;
        for size in self.latent_size {
            check.range("cascade.latent_size", size, 1..=65_536)?;
        }
        check.range("cascade.spatial_factor", self.spatial_factor, 1..=256)?;
        check.range("cascade.window", self.window, 1..=4096)?;
        if let Some(max) = self.max_window {
            check.range("cascade.max_window", max, self.window..=4096)?;
        }
        for (key, text) in [("text", &self.text), ("temporal_text", &self.temporal_text)] {
            let length = text.as_ref().map_or(77, |text| text.length);
            check.range(&format!("cascade.{key}.length"), length, 3..=4096)?;
        }
        if let Some(p) = &self.picture {
            for size in p.size {
                check.range("cascade.picture.size", size, 1..=4096)?;
            }
            let finite = p.mean.iter().all(|m| m.is_finite());
            check.that(finite, "cascade.picture.mean", &"finite numbers", &format!("{:?}", p.mean))?;
            for std in p.std {
                check.positive("cascade.picture.std", std)?;
            }
        }
        if let Some(s) = &self.sampling {
            s.validate("cascade.sampling", check)?;
        }
        if let Some(i) = &self.interpolation {
            check.range("cascade.interpolation.factor", i.factor, 2..=64)?;
            check.range("cascade.interpolation.regimes", i.regimes, 0..=4096)?;
            i.clip.as_ref().map_or(Ok(()), |clip| clip.validate(check))?;
        }
        if let Some(u) = &self.upsampler {
            check.range("cascade.upsampler.factor", u.factor, 1..=64)?;
            check.range("cascade.upsampler.noise_levels", u.noise_levels as usize, 1..=100_000)?;
            let low_res = u.latent.as_ref().map_or(&self.scheduler, |latent| &latent.low_res);
            let trained = low_res.num_train_timesteps as u64;
            let key = "cascade.upsampler.noise_levels";
            check.that(
                u.noise_levels <= trained,
                key,
                &format!("at most {trained} (the training timesteps)"),
                &u.noise_levels,
            )?;
            u.latent.as_ref().map_or(Ok(()), |latent| latent.validate(u.noise_levels, check))?;
        }
        Ok(())
    }
}

impl ClipInterpolation {
    fn validate(&self, check: Check) -> Result<(), BundleError> {
        check.range("cascade.interpolation.clip.intervals", self.intervals, 1..=4096)?;
        let named = |source| BundleError::Scheduler { path: check.path.to_path_buf(), source };
        self.scheduler.validate().map_err(named)?;
        self.sampling.validate("cascade.interpolation.clip.sampling", check)
    }
}

impl LatentUpsampler {
    fn validate(&self, noise_levels: u64, check: Check) -> Result<(), BundleError> {
        check.range("cascade.upsampler.latent.channels", self.channels, 1..=4096)?;
        for scheduler in [&self.scheduler, &self.low_res] {
            let named = |source| BundleError::Scheduler { path: check.path.to_path_buf(), source };
            scheduler.validate().map_err(named)?;
        }
        let key = "cascade.upsampler.latent.max_noise_level";
        let expected = format!("less than {noise_levels}");
        check.that(self.max_noise_level < noise_levels, key, &expected, &self.max_noise_level)?;
        let level = self.noise_level.unwrap_or(0) as usize;
        check.range("cascade.upsampler.latent.noise_level", level, 0..=self.max_noise_level as usize)?;
        self.sampling.validate("cascade.upsampler.latent.sampling", check)
    }
}

impl Sampling {
    fn validate(&self, key: &str, check: Check) -> Result<(), BundleError> {
        check.range(&format!("{key}.steps"), self.steps, 1..=1000)?;
        let fits = self.guidance.iter().all(|g| (0.0..=100.0).contains(g));
        let key = format!("{key}.guidance");
        check.that(fits, &key, &"numbers from 0 to 100", &format!("{:?}", self.guidance))
    }
}

/// The rules of a manifest, each with the sentence for its breach.
#[derive(Clone, Copy)]
pub(super) struct Check<'p> {
    path: &'p Path,
}

impl Check<'_> {
    pub(super) fn that(
        self,
        ok: bool,
        key: &str,
        expected: &dyn Display,
        found: &dyn Display,
    ) -> Result<(), BundleError> {
        if ok {
            return Ok(());
        }
        let (expected, found) = (expected.to_string(), found.to_string());
        Err(BundleError::Value { path: self.path.to_path_buf(), key: key.to_owned(), expected, found })
    }

    pub(super) fn range(
        self,
        key: &str,
        found: usize,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<(), BundleError> {
        self.that(range.contains(&found), key, &format!("{}..={}", range.start(), range.end()), &found)
    }

    pub(super) fn positive(self, key: &str, found: f64) -> Result<(), BundleError> {
        self.that(found.is_finite() && found > 0.0, key, &"a positive number", &found)
    }

    pub(super) fn graph_file(self, key: &str, file: &str) -> Result<(), BundleError> {
        let plain = files::is_plain_relative(file)
            && !file.contains('/')
            && Path::new(file).extension().is_some_and(|e| e == "onnx");
        self.that(plain, key, &"a plain name that ends in .onnx", &format!("{file:?}"))
    }

    pub(super) fn digest(self, key: &str, found: &str) -> Result<(), BundleError> {
        let hex = found.len() == 64 && found.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        self.that(hex, &format!("{key}.blake3"), &"64 lower-case hexadecimal digits", &format!("{found:?}"))
    }
}

/// A file the manifest names must lie in the bundle itself, be a regular file and have the stated size.
pub(super) fn check_file(dir: &Path, manifest: &Path, key: &str, file: &str, bytes: u64) -> Result<(), BundleError> {
    let path = dir.join(file);
    let check = Check { path: manifest };
    for ancestor in path.ancestors().skip(1).take_while(|a| *a != dir) {
        let meta = fs::symlink_metadata(ancestor)
            .map_err(|source| BundleError::Io { path: ancestor.to_path_buf(), source })?;
        check.that(meta.is_dir(), key, &"a file inside the bundle", &format!("{} is no folder", ancestor.display()))?;
    }
    let meta = fs::symlink_metadata(&path).map_err(|source| BundleError::Io { path: path.clone(), source })?;
    check.that(meta.is_file(), key, &"a regular file, not a link", &path.display())?;
    check.that(meta.len() == bytes, &format!("{key}.bytes"), &format!("{bytes} bytes in {file}"), &meta.len())
}

/// Names of parts, ports and labels: ASCII letters, digits, `_`, `-`, at most 64.
fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

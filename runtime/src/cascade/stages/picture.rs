//! A picture from a file: as the first frame, or as what every frame is shown.

use ndarray::{Array3, Axis};

use super::super::error::{CascadeError, Place};
use super::super::plan::{NOISE_AUGMENTATION, Start};
use super::super::store::Frame;
use super::{Stages, split};
use crate::image::{RgbImage, cover, lanczos};
use crate::noise::Source;
use crate::tensor::Tensor;

impl Stages<'_> {
    /// One frame of latents: of the picture that the window starts from, or of the one that all frames are shown.
    pub(super) fn picture(&self, place: Place) -> Result<Vec<Frame>, CascadeError> {
        let (size, conditions) = (self.picture_size(), &self.plan.conditions);
        match (&self.plan.keyframes.start, &conditions.image) {
            (Start::File(path), _) => {
                let picture = RgbImage::open(&self.plan.resolve(path))?.to_frame();
                Ok(vec![self.encoded(place, cover(&picture, size))?])
            }
            (_, Some(image)) => {
                let picture = RgbImage::open(&self.plan.resolve(&image.file))?;
                let mut picture = lanczos(&picture, size);
                let strength = conditions.noise_aug_strength.unwrap_or(NOISE_AUGMENTATION) as f32;
                let noise = self.noise(Source::Picture, 0, &[1, 3, size[0], size[1]]).start();
                picture.zip_mut_with(&noise.index_axis(Axis(0), 0), |x, n| *x += strength * n);
                // The network was trained on latents as the autoencoder gives them, unscaled.
                // Source: diffusers `StableVideoDiffusionPipeline._encode_vae_image`.
                let scale = self.bundle.cascade.scaling_factor as f32;
                let latents = self.encoded(place, picture)?;
                Ok(vec![Frame::new(latents.mapv(|z| z / scale))])
            }
            _ => Ok(vec![]),
        }
    }

    pub(super) fn picture_size(&self) -> [usize; 2] {
        let [_, height, width] = self.latent();
        [height, width].map(|side| side * self.bundle.cascade.spatial_factor)
    }

    /// The latents of a frame `[3, height, width]`.
    pub(super) fn encoded(&self, place: Place, picture: Array3<f32>) -> Result<Frame, CascadeError> {
        let [channels, height, width] = self.latent();
        let image = Tensor::F32(picture.insert_axis(Axis(0)).into_dyn());
        let shape = [1, channels, height, width];
        let latents = self.sessions.call(place, "encoder", &[("image", &image)], Some(&shape))?;
        Ok(split(latents, 0..1).remove(0))
    }
}

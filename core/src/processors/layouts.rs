//! Which grid of tiles suits a picture.

use crate::media::image::Extent;

/// The grids of at least `least` and at most `most` tiles, columns and rows, the smallest ones first; of
/// the same number of tiles, those with fewer columns.
fn grids(least: usize, most: usize) -> Vec<Extent> {
    let all =
        (1..=most).flat_map(|width| (1..=most / width).map(move |height| Extent { width, height }));
    let mut grids: Vec<_> = all.filter(|grid| grid.area() >= least).collect();
    grids.sort_by_key(|grid| grid.area());
    grids
}

/// The grid with the proportions closest to those of a picture. Of equal ones the larger, where the
/// picture has half as many pixels.
pub fn closest(picture: Extent, tile: Extent, least: usize, most: usize) -> Extent {
    let ratio = picture.width as f64 / picture.height as f64;
    let mut best = (f64::INFINITY, Extent::square(1));
    for grid in grids(least, most) {
        let difference = (ratio - grid.width as f64 / grid.height as f64).abs();
        let is_filled = picture.area() as f64 > 0.5 * (tile.area() * grid.area()) as f64;
        if difference < best.0 || difference == best.0 && is_filled {
            best = (difference, grid);
        }
    }
    best.1
}

/// The grid in which a picture has to be enlarged least, or else reduced least. Of equal ones the
/// smallest.
pub fn least_scaled(picture: Extent, tile: Extent, most: usize) -> Extent {
    let scale = |grid: &Extent| {
        let across = (grid.width * tile.width) as f64 / picture.width as f64;
        let down = (grid.height * tile.height) as f64 / picture.height as f64;
        across.min(down)
    };
    let mut best = (0.0, Extent::square(1));
    for grid in grids(1, most) {
        let scale = scale(&grid);
        let is_better = match best.0 < 1.0 {
            true => scale > best.0,
            false => (1.0..best.0).contains(&scale),
        };
        if is_better {
            best = (scale, grid);
        }
    }
    best.1
}

/// As [`least_scaled`], in the precision and the order of another reference: of equal grids that with
/// fewer rows. A side may be 0 or less, because margins are left out.
pub fn least_scaled_rows_first(width: i64, height: i64, tile: usize, most: usize) -> Extent {
    let scale = |grid: &Extent| {
        let across = (grid.width * tile) as f32 / width as f32;
        across.min((grid.height * tile) as f32 / height as f32)
    };
    let mut grids = grids(1, most);
    grids.sort_by_key(|grid| (grid.area(), grid.height));
    let enlarged = grids.iter().filter(|grid| scale(grid) >= 1.0);
    let least = enlarged.reduce(|best, grid| if scale(grid) < scale(best) { grid } else { best });
    let largest =
        || grids.iter().reduce(|best, grid| if scale(grid) > scale(best) { grid } else { best });
    least.or_else(largest).copied().unwrap_or(Extent::square(1))
}

/// The size of a picture on a canvas: as large as it fits, but a side is enlarged to a tile at most.
pub fn on_canvas(picture: Extent, tile: Extent, canvas: Extent) -> Extent {
    let width = picture.width.max(tile.width).min(canvas.width);
    let height = picture.height.max(tile.height).min(canvas.height);
    let across = width as f64 / picture.width as f64;
    let down = height as f64 / picture.height as f64;
    let scaled =
        |side: usize, scale: f64, most: usize| ((side as f64 * scale) as usize).clamp(1, most);
    match across < down {
        true => Extent { width, height: scaled(picture.height, across, height) },
        false => Extent { width: scaled(picture.width, down, width), height },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_are_those_of_the_reference() {
        let size = |width, height| Extent { width, height };
        let tile = Extent::square(336);
        // `get_optimal_tiled_canvas` of `got_ocr2` and of `mllama`, in transformers 5.24.
        for (picture, closest_grid, scaled_grid) in [
            (size(800, 600), size(4, 3), size(3, 2)),
            (size(100, 100), size(1, 1), size(1, 1)),
            (size(2000, 400), size(5, 1), size(6, 2)),
            (size(300, 1200), size(1, 4), size(1, 4)),
            (size(1000, 1000), size(3, 3), size(3, 3)),
        ] {
            assert_eq!(closest(picture, tile, 1, 12), closest_grid, "{picture:?}");
            assert_eq!(least_scaled(picture, tile, 12), scaled_grid, "{picture:?}");
        }
    }
}

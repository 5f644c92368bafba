package node

import (
	"context"
	"slices"
	"syscall"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/why"
)

const (
	collectEvery = 10 * time.Minute
	// collectAbove is the share of the disk, in percent, above which images that nobody uses go.
	collectAbove = 80
)

// collect removes images that nobody uses while the disk is nearly full.
func (s *server) collect(ctx context.Context) error {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		used, err := diskUsed(s.dir.Root())
		if err != nil {
			s.cfg.Log.Warn("the disk's use is not known", "err", err)
			continue
		}
		if used < collectAbove {
			continue
		}
		freed, err := s.images.GC(ctx, s.imageInUse)
		if err != nil {
			s.cfg.Log.Warn("images not collected", "err", err)
		}
		if freed.Files > 0 {
			s.why.Add(why.Record{
				Time: time.Now(), Kind: why.Machine, Rule: "disk_above_80",
				Text: "images that nobody uses were removed, since the disk was over 80 % full",
			})
		}
	}
}

// imageInUse says whether a machine, a release that may be started, or a tag needs the image.
func (s *server) imageInUse(d volant.Digest) bool {
	snap := s.platform.cat.Snapshot()
	for i := range snap.Images() {
		if i.Digest == d {
			return true
		}
	}
	for _, a := range snap.Apps() {
		if a.Tombstone {
			continue
		}
		for _, r := range snap.Releases(a.App) {
			if r.Image == d && !r.Tombstone && r.Version >= a.Release {
				return true
			}
		}
		for _, m := range snap.Machines(a.App) {
			if m.Image == d && !m.Tombstone {
				return true
			}
		}
	}
	return false
}

// imageSources are the references by which an image's digest was found, as machines and releases name them.
func (s *server) imageSources(d volant.Digest) []source {
	snap := s.platform.cat.Snapshot()
	var out []source
	add := func(image volant.Digest, ref string, org volant.OrgID) {
		if x := (source{ref, org}); image == d && !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	for _, a := range snap.Apps() {
		for _, r := range snap.Releases(a.App) {
			add(r.Image, r.Config.Image, r.Org)
		}
		for _, m := range snap.Machines(a.App) {
			add(m.Image, m.Config.Image, m.Org)
		}
	}
	return out
}

// diskUsed is the share of the directory's disk that is used, in percent.
func diskUsed(dir string) (int, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	used := st.Blocks - st.Bfree
	if used+st.Bavail == 0 { // what is kept for others is not ours
		return 0, nil
	}
	return int(used * 100 / (used + st.Bavail)), nil //nolint:gosec // at most 100
}

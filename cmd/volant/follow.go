package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/appfile"
	"github.com/volant-edge/volant/client"
	"github.com/volant-edge/volant/why"
)

// deployment is one run of `volant deploy`.
type deployment struct {
	*call
	out   io.Writer
	app   string
	org   string                    // of the app; empty: the token's
	local bool                      // pull images here, not on the server
	told  map[string]bool           // decisions and exits
	logs  map[string][]api.LogEntry // last lines of machines that ended, by ID
}

func (d *deployment) sayf(format string, args ...any) {
	if !d.json {
		fmt.Fprintln(d.out, clean(fmt.Sprintf(format, args...), ""))
	}
}

func (d *deployment) run(ref string, f *appfile.File, detach bool) (api.Release, error) {
	digest, err := d.image(d.ctx, ref)
	if err != nil {
		return api.Release{}, err
	}
	if err := d.prepare(digest); err != nil {
		return api.Release{}, err
	}
	for _, cfg := range f.Configs() {
		cfg.Image = ref
	}
	req := f.Release
	req.Image = string(digest)
	r, err := d.CreateRelease(d.ctx, d.app, req)
	if err != nil {
		return r, err
	}
	d.sayf("Release %d: %s.", r.Version, r.Status)
	if detach {
		return r, nil
	}
	return d.follow(r)
}

func (d *deployment) prepare(digest volant.Digest) error {
	began := time.Now()
	p := newProgress(d.out, d.json)
	err := d.Prepare(d.ctx, digest, func(pr api.Progress) { p.show("Root disk", pr.Done, pr.Total) })
	p.end()
	if err == nil {
		d.sayf("Root disk ready after %.1f s.", time.Since(began).Seconds())
	}
	return err
}

// follow waits for the outcome of a release and tells what the server does meanwhile.
func (d *deployment) follow(r api.Release) (api.Release, error) {
	d.told, d.logs = map[string]bool{}, map[string][]api.LogEntry{}
	last := r.Status
	for {
		now, err := d.Release(d.ctx, d.app, r.Version)
		if err != nil {
			return r, d.interrupted(r, err)
		}
		d.tellMachines(now)
		d.tellDecisions(now)
		if now.Status != last {
			d.sayf("Release %d: %s.", now.Version, now.Status)
			last = now.Status
		}
		switch volant.ReleaseStatus(now.Status) {
		case volant.ReleaseComplete:
			return now, nil
		case volant.ReleaseFailed:
			return now, d.failure(now)
		default: // pending, running, or what a newer server calls it: look again
		}
		select {
		case <-d.ctx.Done():
			return now, d.interrupted(r, d.ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (d *deployment) interrupted(r api.Release, err error) error {
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("release %d goes on without this command: %w; see `volant releases %s`", r.Version, err, d.app)
	}
	return err
}

// tellDecisions tells the steps of the deploy. They are for information: where they cannot be had, the outcome still can.
func (d *deployment) tellDecisions(r api.Release) {
	recs, err := d.Why(d.ctx, d.app, []why.Kind{why.Deploy}, 100)
	if err != nil {
		return
	}
	for _, rec := range slices.Backward(recs) {
		key := rec.Time.String() + rec.Text
		if rec.Time.Before(r.CreatedAt) || d.told[key] {
			continue
		}
		d.told[key] = true
		what := ""
		if rec.Machine != "" {
			what = "machine " + string(rec.Machine) + ": "
		}
		d.sayf("  %s%s", what, rec.Text)
	}
}

// tailOf is how many of a machine's last lines are told when it ends.
const tailOf = 10

// tellMachines tells of machines of the release that ended, with their last lines while those can be had.
func (d *deployment) tellMachines(r api.Release) {
	ms, err := d.Machines(d.ctx, d.app)
	if err != nil {
		return // as tellDecisions
	}
	for _, m := range ms {
		if m.Release != r.Version || m.Exit == nil || m.Exit.Requested {
			continue
		}
		key := m.ID + m.Exit.At.String()
		if d.told[key] {
			continue
		}
		d.told[key] = true
		d.sayf("  machine %s ended: %s", m.ID, exitText(m.Exit))
		var lines []api.LogEntry
		err := d.Logs(d.ctx, d.app, client.Logs{Machine: m.ID, Tail: tailOf, NoEvents: true}, func(e api.LogEntry) error {
			lines = append(lines, e)
			return nil
		})
		if err == nil && len(lines) > 0 {
			d.logs[m.ID] = lines
		}
		for _, e := range d.logs[m.ID] {
			d.sayf("    %s %s", e.Source, clean(e.Message, ""))
		}
	}
}

func exitText(e *volant.Exit) string {
	switch {
	case e.OOM:
		return "it ran out of memory"
	case e.Signal != 0:
		return fmt.Sprintf("signal %d", e.Signal)
	}
	return fmt.Sprintf("exit code %d", e.Code)
}

// deployFailed is the error of a release that failed.
type deployFailed struct {
	err     *volant.Error
	release api.Release
	logs    []api.LogEntry
}

func (e *deployFailed) Error() string { return e.err.Error() }

func (e *deployFailed) Unwrap() error { return e.err }

func (d *deployment) failure(r api.Release) error {
	e := &deployFailed{release: r, err: volant.Errorf(volant.ErrPrecondition, "release %d failed, and what served before serves on: %s", r.Version, r.Reason).
		WithRemedy("see `volant why %s --kind deploy` and `volant logs %s`", d.app, d.app)}
	for _, lines := range d.logs {
		e.logs = append(e.logs, lines...)
	}
	slices.SortFunc(e.logs, func(a, b api.LogEntry) int { return a.Time.Compare(b.Time) })
	return e
}

// progress shows how far a long work is: in place on a terminal, else once in ten seconds.
type progress struct {
	w     io.Writer
	quiet bool
	tty   bool
	last  time.Time
	shown bool
}

func newProgress(w io.Writer, quiet bool) *progress {
	p := &progress{w: w, quiet: quiet, last: time.Now()}
	if f, ok := w.(*os.File); ok {
		st, err := f.Stat()
		p.tty = err == nil && st.Mode()&os.ModeCharDevice != 0
	}
	return p
}

func (p *progress) show(what string, done, total int64) {
	every := 10 * time.Second
	if p.tty {
		every = 100 * time.Millisecond
	}
	if p.quiet || total <= 0 || time.Since(p.last) < every {
		return
	}
	p.last, p.shown = time.Now(), true
	end := "\n"
	if p.tty {
		end = "\r"
	}
	fmt.Fprintf(p.w, "%s: %s of %s (%d %%)   %s", what, size(done), size(total), done*100/total, end)
}

func (p *progress) end() {
	if p.shown && p.tty {
		fmt.Fprintln(p.w)
	}
}

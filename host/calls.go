package host

import (
	"context"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/why"
)

// setWish takes a newer wish. An error means that it could not be put on record.
func (m *machine) setWish(w volant.Machine) error {
	if w.Tombstone {
		w.Run = volant.RunDestroyed
	}
	found, news, err := m.takeWish(w)
	if found {
		m.publish()
	}
	if news {
		m.nudge()
	}
	return err
}

// takeWish reports whether an orphan has its wish again, and whether the wish is a newer one.
func (m *machine) takeWish(w volant.Machine) (found, news bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	found = m.orphan
	m.orphan = false
	old := m.rec.Machine
	if w.Generation <= old.Generation && old.Kind != "" {
		return found, false, nil
	}
	if m.rec.State == volant.StateDestroyed { // its tombstone: the record is gone and stays so
		m.rec.Machine, m.rec.Generation = w, w.Generation
		return found, true, nil
	}
	wanted := m.rec.Wanted
	if err := m.writeLocked(pointWish, func(r *record) { r.follow(w) }); err != nil {
		return found, true, err
	}
	if m.rec.Wanted && !wanted {
		m.wokenFor = wishSource(&w)
	}
	m.unwished = false
	m.prepared = m.prepared && w.Image == old.Image
	m.retryAt = time.Time{}
	if m.doing == DoBoot || m.doing == DoPrepare || m.doing == DoRestart {
		if w.Run == volant.RunDestroyed || w.Run == volant.RunOff || w.Version != old.Version {
			m.cancel()
		}
	}
	return found, true, nil
}

// follow takes the wish and what it says about being awake.
func (r *record) follow(w volant.Machine) {
	old := r.Machine
	r.Machine = w
	changed := old.Version != w.Version
	if changed {
		r.Failures, r.Restarts = 0, nil
		r.tellOfVersion(old.Version == "", &w)
	}
	switch w.Run {
	case volant.RunOn:
		r.Wanted = r.Wanted || changed || old.Run != volant.RunOn
	case volant.RunOff, volant.RunDestroyed:
		r.Wanted = false
	case volant.RunAuto:
		if changed && r.State == volant.StateFailed {
			r.State, r.Reason = volant.StateStopped, "its config was changed"
		}
	}
	if changed {
		r.launch(w)
	}
}

// tellOfVersion adds a new version to the history.
func (r *record) tellOfVersion(first bool, w *volant.Machine) {
	switch {
	case w.Run == volant.RunDestroyed:
	case first:
		r.happened(volant.EventLaunch, volant.StateCreated, wishSource(w))
	case r.Version != "" && r.State != volant.StateSuspended:
		r.happened(volant.EventUpdate, volant.StateUpdating, wishSource(w))
	default:
		r.happened(volant.EventUpdate, r.State, wishSource(w))
	}
}

// launch begins with a new version as the wish says.
func (r *record) launch(w volant.Machine) {
	switch {
	case w.Launch == volant.LaunchRest:
		r.Wanted = false
		if r.State == volant.StateCreated {
			r.State, r.Reason = volant.StateStopped, "it is to be started later"
			r.happened(volant.EventStop, volant.StateStopped, volant.SourceHost)
		}
	case w.Launch == volant.LaunchStart && (w.Run == volant.RunOn || w.Run == volant.RunAuto):
		r.Wanted = true
	}
}

// wake wants the machine awake and returns when it is on record that it starts. What a user asks for, a cordon
// does not hinder: that is about connections.
func (m *machine) wake(ctx context.Context, source, reason string) error {
	m.mu.Lock()
	r := &m.rec
	switch {
	case r.Machine.Run == volant.RunDestroyed:
		m.mu.Unlock()
		return volant.Errorf(volant.ErrPrecondition, "machine %s is %s", m.id, r.State)
	case r.Machine.Run == volant.RunOff:
		m.mu.Unlock()
		return volant.Errorf(volant.ErrPrecondition, "machine %s was stopped by its owner", m.id).
			WithRemedy("start it: volant machine start %s", m.id)
	case r.Machine.Run == volant.RunAuto && r.Machine.Cordoned && source != volant.SourceUser:
		m.mu.Unlock()
		return volant.Errorf(volant.ErrPrecondition, "machine %s is cordoned", m.id).
			WithRemedy("uncordon it: volant machine uncordon %s", m.id)
	case r.State == volant.StateStarted && r.Draining && !r.Machine.Cordoned:
		m.mu.Unlock()
		return m.drain(Drain{By: reason}) // who wants it awake wants it to take connections
	case r.State == volant.StateStarted || r.State == volant.StateStarting:
		m.mu.Unlock()
		return nil
	}
	if r.State == volant.StateFailed {
		r.Restarts = nil
	}
	if !r.Wanted {
		m.wokenBy, m.wokenFor, m.retryAt = reason, source, time.Time{}
	}
	r.Wanted = true
	c := make(chan error, 1)
	m.waiters = append(m.waiters, c)
	m.mu.Unlock()
	m.nudge()
	select {
	case err := <-c:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-m.h.stopped:
		return errStopped
	}
}

// order gives the loop something to do and returns the order when it has begun.
func (m *machine) order(ctx context.Context, a *ask) error {
	a.begun, a.done = make(chan error, 1), make(chan struct{})
	m.mu.Lock()
	if m.ask != nil {
		m.mu.Unlock()
		return volant.Errorf(volant.ErrConflict, "machine %s is already asked to %s", m.id, m.ask.what)
	}
	m.ask = a
	if a.what == AskStop && !a.seal && (m.doing == DoBoot || m.doing == DoPrepare) {
		m.rec.Wanted = false
		m.cancel()
	}
	m.mu.Unlock()
	m.nudge()
	select {
	case err := <-a.begun:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-m.h.stopped:
		return errStopped
	}
}

// drain sets or clears draining.
func (m *machine) drain(d Drain) error {
	news, err := m.takeDrain(d)
	if news {
		m.publish()
		m.nudge()
	}
	return err
}

func (m *machine) takeDrain(d Drain) (news bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &m.rec
	switch {
	case d.On == r.Draining && (!d.On || d.Then == r.Then):
		return false, nil
	case d.On && r.State != volant.StateStarted && r.State != volant.StateStarting:
		return false, volant.Errorf(volant.ErrPrecondition, "machine %s is %s: there is nothing to drain", m.id, r.State)
	case !d.On && (r.State == volant.StateSuspending || r.State == volant.StateStopping):
		return false, volant.Errorf(volant.ErrPrecondition, "machine %s is %s already", m.id, r.State).WithRemedy("wake it")
	}
	m.sealAt = time.Time{}
	err = m.writeLocked(pointDrain, func(r *record) {
		if d.On && !r.Draining {
			r.Drained = time.Now()
		}
		r.Draining, r.Then = d.On, ""
		if d.On {
			r.Then = d.Then
		}
	})
	return err == nil, err
}

// setSlots takes the number of slots the proxy holds.
func (m *machine) setSlots(n int) {
	m.mu.Lock()
	same := n == m.slots
	if n <= 0 && m.slots > 0 {
		m.empty = time.Now()
	}
	m.slots = n
	if n <= 0 && !same {
		m.sealAt = time.Time{}
	}
	drained := n <= 0 && m.rec.Draining && !same
	m.mu.Unlock()
	if drained {
		m.nudge()
	}
}

// hasServed notes that the machine's app runs well.
func (m *machine) hasServed() {
	m.mu.Lock()
	news := m.appUp && m.servedLocked()
	m.mu.Unlock()
	if news {
		m.publish()
	}
}

// isDeaf counts a run which did not come to serve, once.
func (m *machine) isDeaf() {
	m.mu.Lock()
	news := m.appUp && !m.rec.Served && !m.deaf
	if news {
		m.deaf = true
		m.rec.Failures++
	}
	m.mu.Unlock()
	if news {
		m.publish()
		m.because(why.Machine, "deaf", "its app runs, and accepted no connection in the time it had for that")
	}
}

// servedLocked notes that this run has come to serve, and says whether that is news.
func (m *machine) servedLocked() bool {
	m.rec.Served = true
	news := m.rec.Failures != 0
	m.rec.Failures = 0
	return news
}

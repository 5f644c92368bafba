package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// logger leads etcd's log into ours, and takes from it the right to end the process.
func (m *member) logger(log *slog.Logger) *zap.Logger {
	end := hook{m}
	return zap.New(&core{log: log}, zap.WithFatalHook(end), zap.WithPanicHook(end))
}

// hook runs where etcd's logger would exit or panic.
type hook struct{ m *member }

func (h hook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	text := e.Message
	if cause, ok := enc.Fields["error"]; ok {
		text = fmt.Sprintf("%s: %v", text, cause)
	}
	h.m.fail(errors.New(text))
	runtime.Goexit()
}

// core hands etcd's log lines to slog: its warnings as ours, the rest for debugging.
type core struct {
	log    *slog.Logger
	fields []zapcore.Field
}

func (c *core) Enabled(l zapcore.Level) bool {
	return l >= zapcore.DPanicLevel || c.log.Enabled(context.Background(), level(l))
}

func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{log: c.log, fields: append(c.fields[:len(c.fields):len(c.fields)], fields...)}
}

func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range append(c.fields[:len(c.fields):len(c.fields)], fields...) {
		f.AddTo(enc)
	}
	l := level(e.Level)
	if newStore(e.Message) {
		l = slog.LevelDebug
	}
	c.log.Log(context.Background(), l, "etcd", "text", e.Message, "fields", enc.Fields)
	return nil
}

// newStore says whether etcd complains of what is missing in every store until its first write: the term,
// by which it tells the version of its own storage. It finds out later.
func newStore(text string) bool {
	return text == "Failed to detect schema version" || text == "failed to update storage version"
}

func (c *core) Sync() error { return nil }

func level(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}

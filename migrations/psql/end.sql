-- End of every migration for psql.
COMMIT;

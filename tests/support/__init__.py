"""What tests share: servers, processes and files of others, each with one job."""
